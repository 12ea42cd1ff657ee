//! Memory as faked files of a system tell it.

use tempfile::TempDir;

use super::*;

/// A system with 64 GB available, this text in files, and nothing else.
fn system_of(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let meminfo = ("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   62500000 kB\n");
    for (name, text) in [meminfo].iter().chain(files) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn found(files: &[(&str, &str)]) -> (f64, String) {
    let room = room_below(system_of(files).path(), 0).unwrap();
    (room.bytes, room.limit)
}

const ALL: f64 = 64e9;
const SECOND: (&str, &str) = (
    "proc/self/mountinfo",
    "21 1 0:1 / /proc rw - proc proc rw\n30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
);
const FIRST: (&str, &str) = (
    "proc/self/mountinfo",
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
     36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
);

#[test]
fn without_limits_the_system_tells() {
    assert_eq!(found(&[]), (ALL, "/proc/meminfo (MemAvailable)".to_string()));
    assert_eq!(room_below(tempfile::tempdir().unwrap().path(), 0), None);
    let text = "Max address space  unlimited  unlimited  bytes\n";
    assert_eq!(found(&[SECOND, ("proc/self/limits", text)]).0, ALL);
}

#[test]
fn a_group_of_the_second_version_counts_with_all_above_it() {
    let group = ("proc/self/cgroup", "0::/user.slice/job 7/step\n");
    let base = "sys/fs/cgroup/user.slice";
    let max = |folder: &str| format!("{base}{folder}/memory.max");
    let current = |folder: &str| format!("{base}{folder}/memory.current");
    let mut files = vec![
        (max(""), "max\n"),
        (max("/job 7"), "5000000000\n"),
        (current("/job 7"), "1000000000\n"),
        (max("/job 7/step"), "6000000000\n"),
        (current("/job 7/step"), "900000000\n"),
    ];
    let look = |files: &[(String, &str)]| {
        let mut all = vec![SECOND, group];
        all.extend(files.iter().map(|(name, text)| (&**name, *text)));
        found(&all)
    };
    let limit = "/sys/fs/cgroup/user.slice/job 7/memory.max (5.0 GB)";
    assert_eq!(look(&files), (4e9, limit.to_string()));
    // The system takes pages of files back.
    files.push((
        format!("{base}/job 7/memory.stat"),
        "anon 5\ninactive_file 300000000\nactive_file 200000000\n",
    ));
    assert_eq!(look(&files).0, 4.5e9);
    // More used than allowed, or more pages of files than all pages.
    files[2].1 = "9000000000\n";
    assert_eq!(look(&files).0, 0.0);
    files[2].1 = "1\n";
    assert_eq!(look(&files).0, 5e9);
    // The own group becomes the narrowest.
    files[3].1 = "950000000\n";
    assert_eq!(look(&files).0, 5e7);
}

#[test]
fn a_group_of_the_first_version_counts_with_all_above_it() {
    let group = ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/api/8fd\n0::/\n");
    let own = "sys/fs/cgroup/memory/api/8fd/memory.limit_in_bytes";
    let used = ("sys/fs/cgroup/memory/api/8fd/memory.usage_in_bytes", "1500000000");
    assert_eq!(found(&[FIRST, group, (own, "9223372036854771712\n"), used]).0, ALL);
    let (bytes, limit) = found(&[FIRST, group, (own, "2000000000\n"), used]);
    assert_eq!((bytes, &*limit), (5e8, "/sys/fs/cgroup/memory/api/8fd/memory.limit_in_bytes (2.0 GB)"));
    let stat = (
        "sys/fs/cgroup/memory/api/8fd/memory.stat",
        "inactive_file 1\ntotal_inactive_file 100000000\ntotal_active_file 0\n",
    );
    assert_eq!(found(&[FIRST, group, (own, "2000000000\n"), used, stat]).0, 6e8);
    let above = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000000\n");
    assert_eq!(found(&[FIRST, group, (own, "2000000000\n"), above]).0, 1e9);
}

#[test]
fn a_container_sees_its_group_at_the_top() {
    // Without a namespace for groups: the host's name, of which only the folder at the top is there.
    let mounts = (
        "proc/self/mountinfo",
        "9 8 0:3 /docker/af /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    );
    let top = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000000");
    for group in ["4:memory:/docker/af\n", "4:memory:/\n", "4:memory:/../..\n"] {
        assert_eq!(found(&[mounts, ("proc/self/cgroup", group), top]).0, 3e9, "{group}");
    }
    let below = ("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "2000000000");
    let group = ("proc/self/cgroup", "4:memory:/docker/af/inner\n");
    assert_eq!(found(&[mounts, group, top, below]).0, 2e9);
}

#[test]
fn both_versions_side_by_side() {
    let mounts = format!("{}37 31 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", FIRST.1);
    let files = [
        (FIRST.0, &*mounts),
        ("proc/self/cgroup", "4:memory:/a\n0::/b\n"),
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000000000"),
        ("sys/fs/cgroup/unified/b/memory.max", "8000000000"),
    ];
    assert_eq!(found(&files).0, 7e9);
    assert_eq!(found(&files[..2]).0, ALL);
    assert_eq!(found(&[files[0], files[1], files[3]]).0, 8e9);
}

#[test]
fn a_process_has_limits_of_its_own() {
    let limits = "Limit  Soft Limit  Hard Limit  Units\nMax data size  unlimited  unlimited  bytes\n\
                  Max address space         4000000000           unlimited            bytes     \n";
    let status = (
        "proc/self/status",
        "Name:\tpython\nVmPeak:\t 9 kB\nVmSize:\t 1000000 kB\nVmData:\t 500000 kB\n",
    );
    let files = [("proc/self/limits", limits), status];
    let (bytes, limit) = found(&files);
    let expected = "/proc/self/limits (RLIMIT_AS, ulimit -v: 4.0 GB) with 0 threads";
    assert_eq!((bytes, &*limit), (4e9 - 1.024e9 - 72e6, expected));
    // What threads reserve counts, used or not.
    assert_eq!(room_below(system_of(&files).path(), 9).unwrap().bytes, bytes - 9.0 * 72e6);
    let limits = limits.replace("unlimited  unlimited", "700000000  unlimited");
    let (bytes, limit) = found(&[("proc/self/limits", &limits), status]);
    assert_eq!(
        (bytes, &*limit),
        (7e8 - 5.12e8 - 72e6, "/proc/self/limits (RLIMIT_DATA, ulimit -d: 700 MB) with 0 threads")
    );
}

#[test]
fn what_cannot_be_read_limits_nothing() {
    let group = ("proc/self/cgroup", "0::/a\n");
    for text in ["", "max", "-1", "99999999999999999999999", "1e9", "\u{0}", "18446744073709551615"] {
        assert_eq!(found(&[SECOND, group, ("sys/fs/cgroup/a/memory.max", text)]).0, ALL, "{text:?}");
        let limits = format!("Max address space {text} bytes\n");
        assert_eq!(found(&[("proc/self/limits", &limits)]).0, ALL, "{text:?}");
    }
    for text in ["", "nonsense", "0::", "::::", ":memory", "0:memory"] {
        assert_eq!(found(&[SECOND, ("proc/self/cgroup", text)]).0, ALL, "{text:?}");
    }
    for text in
        ["", " - ", "1 2 - cgroup2", "a b c d e - cgroup", "1 2 3 / \\ - cgroup2 x y", "- cgroup2 a"]
    {
        assert_eq!(found(&[("proc/self/mountinfo", text), group]).0, ALL, "{text:?}");
    }
    assert_eq!(found(&[SECOND, group, ("sys/fs/cgroup/a/memory.max", "0")]).0, 0.0);
}

#[test]
fn blanks_in_mount_points_are_read() {
    let mounts = ("proc/self/mountinfo", "9 8 0:3 / /my\\040groups\\134x rw - cgroup2 c rw\n");
    let files = [mounts, ("proc/self/cgroup", "0::/\n"), ("my groups\\x/memory.max", "1000000000")];
    assert_eq!(found(&files).0, 1e9);
}

#[test]
fn a_refusal_says_what_is_needed_what_is_there_and_why() {
    let room = Room { bytes: 1e9, limit: "/some/memory.max (2.0 GB)".to_string() };
    let ask = |needed| check_in(Some(&room), "k", || "9 rows".to_string(), needed, "Select fewer.");
    ask(0.9e9).unwrap();
    let error = ask(1.5e9).unwrap_err().to_string();
    let expected = "k: found 9 rows, which takes some 1.5 GB of memory, expected at most the 1.0 GB that /some/memory.max \
                    (2.0 GB) leaves. Select fewer.";
    assert_eq!(error, expected);
    assert!(ask(f64::INFINITY).is_err());
    check_in(None, "k", String::new, 1e30, "").unwrap();
}
