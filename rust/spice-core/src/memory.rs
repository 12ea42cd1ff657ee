//! How much memory there is to use.

use std::fs;

/// Bytes that can be taken without swapping: what the system has, or what the process's group may still take.
/// `None` where the system does not say.
pub fn available() -> Option<f64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024.0)
    });
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<f64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max");
    let group =
        limit.zip(number("/sys/fs/cgroup/memory.current")).map(|(most, now)| (most - now).max(0.0));
    match (system, group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}
