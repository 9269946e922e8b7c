//! The same function as a service of its own, as one would write it without a platform: Flask behind
//! gunicorn, in a container of the same image.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::service::{Caller, required};

pub struct Flask {
    container: String,
    address: String,
}

impl Flask {
    /// With threads, since only then gunicorn keeps connections, and a process for each core.
    pub async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        // Beside the host's network, which spares it the way through a bridge.
        let started = Command::new("docker")
            .args(["run", "--detach", "--rm", "--network", "host"])
            .args(["--volume", &format!("{}:/opt/flask:ro", required("TAIBAI_BENCH_FLASK"))])
            .args(["--env", "PYTHONPATH=/opt/flask", "--workdir", "/opt/flask", "--user", "65534:65534"])
            .args([&required("TAIBAI_TEST_IMAGE"), "python3", "-m", "gunicorn", "--bind", &address])
            .args(["--workers", "2", "--threads", "4", "--worker-tmp-dir", "/dev/shm", "app:app"])
            .output()
            .unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let container = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        let flask = Self { container, address };
        while tokio::net::TcpStream::connect(&flask.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        flask
    }

    pub fn caller(&self) -> Caller {
        Caller::new(&self.address, "/", None, &json!({"name": "bench"}), "Hello, bench")
    }

    pub fn stop(self) {
        let stopped = Command::new("docker").args(["kill", &self.container]).output().unwrap();
        assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    }
}
