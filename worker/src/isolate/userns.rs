//! The user namespace that rbuild is in: which ids exist in it.

use std::fs;

/// The ids of this process's user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
    /// Whether supplementary groups can be set.
    pub set_groups: bool,
}

impl Ids {
    /// Reads `/proc/self`.
    pub fn current() -> Self {
        // Without /proc, or without user namespaces, all ids exist.
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let ranges = |name: &str| read(name).map_or_else(|| vec![(0, u32::MAX)], |text| parse(&text));
        Self {
            users: ranges("uid_map"),
            groups: ranges("gid_map"),
            set_groups: read("setgroups").is_none_or(|text| text.trim() != "deny"),
        }
    }

    /// Whether this is a user namespace other than the host's.
    pub fn is_namespace(&self) -> bool {
        self.users != [(0, u32::MAX)]
    }

    /// Whether the user exists.
    pub fn has_user(&self, uid: u32) -> bool {
        contains(&self.users, uid)
    }

    /// Whether the group exists.
    pub fn has_group(&self, gid: u32) -> bool {
        contains(&self.groups, gid)
    }
}

/// Lines of `inside outside count`; the result is first and count.
fn parse(map: &str) -> Vec<(u32, u32)> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let first = numbers.next()?.ok()?;
            Some((first, numbers.nth(1)?.ok()?))
        })
        .collect()
}

fn contains(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_exist_if_a_line_of_the_map_has_them() {
        let map = parse("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(map, [(0, 1), (1, 65536)]);
        for (id, exists) in [(0, true), (1, true), (65536, true), (65537, false), (u32::MAX, false)] {
            assert_eq!(contains(&map, id), exists, "{id}");
        }
    }
}
