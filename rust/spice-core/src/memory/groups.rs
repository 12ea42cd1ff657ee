//! Control groups: what a container, a batch system or a service manager lets its processes take.
//!
//! A process is in a group of the second version, of the first, or of both. The memory of a group counts for all groups
//! above it too, so each of them may be the narrowest.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{Room, limit};

/// How the versions call things.
struct Version {
    /// Its name in `/proc/self/cgroup`, where the second version has none.
    controller: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Pages of files, by their lines in `memory.stat`.
    files: [&'static str; 2],
}

const FIRST: Version = Version {
    controller: "memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};
const SECOND: Version = Version {
    controller: "",
    limit: "memory.max",
    used: "memory.current",
    files: ["inactive_file", "active_file"],
};

/// What each group that the process is in leaves.
pub(super) fn rooms(root: &Path) -> Vec<Room> {
    let read = |name: &str| fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
    let (groups, mounts) = (read("cgroup"), read("mountinfo"));
    let mut rooms = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(group) = groups.lines().find_map(|line| mount.group_of(line)) else { continue };
        for folder in mount.folders(group) {
            rooms.extend(mount.version.room(root, &folder));
        }
    }
    rooms
}

/// Where groups are shown as folders.
struct Mount {
    version: &'static Version,
    /// The group that is shown at `point`.
    top: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// From a line of `/proc/self/mountinfo`, if it mounts groups that limit memory.
    fn parse(line: &str) -> Option<Self> {
        let (fields, about) = line.split_once(" - ")?;
        let mut about = about.split(' ');
        let version = match about.next()? {
            "cgroup2" => &SECOND,
            "cgroup" if about.nth(1)?.split(',').any(|option| option == "memory") => &FIRST,
            _ => return None,
        };
        let mut fields = fields.split(' ').skip(3);
        let (top, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
        Some(Self { version, top, point })
    }

    /// The process's group, from a line of `/proc/self/cgroup`, if that is about groups of this kind.
    fn group_of<'a>(&self, line: &'a str) -> Option<&'a Path> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let ours = controllers.split(',').any(|name| name == self.version.controller);
        ours.then(|| Path::new(group))
    }

    /// The folders of a group and of all above it that are shown, the group's own first.
    fn folders(&self, group: &Path) -> Vec<PathBuf> {
        // A container sees its own group at the top, under a name that only its host has a folder for.
        let inside = group.strip_prefix(&self.top).unwrap_or(Path::new(""));
        let names: Vec<_> = inside
            .components()
            .map_while(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        (0..=names.len())
            .rev()
            .map(|count| names[..count].iter().fold(self.point.clone(), |path, name| path.join(name)))
            .collect()
    }
}

impl Version {
    /// What the group of a folder leaves.
    fn room(&self, root: &Path, folder: &Path) -> Option<Room> {
        let here = root.join(folder.strip_prefix("/").unwrap_or(folder));
        let read = |name: &str| fs::read_to_string(here.join(name)).ok();
        let most = limit(&read(self.limit)?)?;
        let used: f64 = read(self.used).and_then(|text| limit(&text)).unwrap_or(0.0);
        let stat = read("memory.stat").unwrap_or_default();
        let files: f64 = self.files.iter().filter_map(|name| counted(&stat, name)).sum();
        let bytes = (most - (used - files).max(0.0)).max(0.0);
        let limit = format!("{} ({})", folder.join(self.limit).display(), super::size(most));
        Some(Room { bytes, limit })
    }
}

/// The number of a line `name number`.
fn counted(text: &str, name: &str) -> Option<f64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(found, _)| *found == name).find_map(|(_, number)| limit(number))
}

/// A path as `/proc` writes it: blanks and the like as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    PathBuf::from(path)
}
