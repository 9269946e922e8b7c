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

/// What processes have used so far.
#[derive(Debug, Default, Clone, Copy)]
pub struct Used {
    /// Of processors, for user and kernel.
    pub seconds: f64,
    /// How often threads gave up or lost a processor.
    pub switches: f64,
    /// Pages that had to be mapped, none of which came from a disk.
    pub faults: f64,
}

impl Used {
    pub fn by(pids: &[u32]) -> Self {
        let mut used = Self::default();
        for pid in pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<f64> = match stat.rsplit_once(')') {
                Some((_, fields)) => {
                    fields.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect()
                }
                None => continue,
            };
            used.faults += fields[6];
            used.seconds += (fields[10] + fields[11]) / TICKS;
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
            used.switches += tasks.flatten().map(|task| switches(&task)).sum::<f64>();
        }
        used
    }

    /// Adds what was used between the two.
    pub fn add(&mut self, before: &Self, after: &Self) {
        self.seconds += after.seconds - before.seconds;
        self.switches += after.switches - before.switches;
        self.faults += after.faults - before.faults;
    }
}

fn switches(task: &std::fs::DirEntry) -> f64 {
    let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
    let lines = status.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
    lines.filter_map(|(_, count)| count.trim().parse::<f64>().ok()).sum()
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
