//! What processes use, as the kernel counts it: it tells more than a clock where others use the machine too.

use std::process::Command;

const MIB: f64 = 1024.0;

/// Ticks of processor time in a second.
const TICKS: f64 = 100.0;

/// Processes of a container.
pub fn pids_of(container: &str) -> Vec<u32> {
    let listed = Command::new("docker").args(["top", container, "-o", "pid"]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().skip(1).filter_map(|line| line.trim().parse().ok()).collect()
}

/// Processes of all containers that have this label.
pub fn pids_labelled(label: &str) -> Vec<u32> {
    let filter = format!("label={label}");
    let listed = Command::new("docker").args(["ps", "--quiet", "--filter", &filter]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().flat_map(pids_of).collect()
}

/// Processor time so far, in seconds, of user and kernel.
pub fn processor_seconds(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS
}

/// How often their threads gave up or lost a processor.
pub fn switches(pids: &[u32]) -> f64 {
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let lines = status.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        lines.filter_map(|(_, count)| count.trim().parse::<f64>().ok()).sum::<f64>()
    };
    let of_process = |pid: &u32| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        tasks.flatten().map(of_task).sum::<f64>()
    };
    pids.iter().map(of_process).sum()
}

/// Memory that nobody else has a share in.
pub fn private_mib(pids: &[u32]) -> f64 {
    let of_process = |pid: &u32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
        let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.sum::<f64>() / MIB
    };
    pids.iter().map(of_process).sum()
}
