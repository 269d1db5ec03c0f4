//! Users and groups, looked up in the bytes of `/etc/passwd` and `/etc/group` of an image.
//!
//! The files are strangers': lines that are not understood are skipped, numbers that do not fit are never wrapped.

use bstr::{BStr, ByteSlice};

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory; `/` if the user has no entry.
    pub home: String,
}

/// A user or group that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// A name that is in no line of the file.
    #[error("could not find user {0:?} in /etc/passwd of the image")]
    User(String),
    /// A name that is in no line of the file.
    #[error("could not find group {0:?} in /etc/group of the image")]
    Group(String),
    /// A number that is no id.
    #[error("{0:?} is not a user or group id: ids go from 0 to {MAX_ID}")]
    OutOfRange(String),
}

/// `/etc/passwd` or `/etc/group` longer than this is refused by who reads it: 10 MiB.
pub const MAX_FILE: u64 = 10 << 20;

/// The largest id: the kernel means "no change" by -1, and signed readers wrap above 2^31.
pub const MAX_ID: u32 = i32::MAX as u32;

/// Looks up `user[:group]` of `USER`, an exec's user. Empty is root. A group that is given leaves no supplementary
/// groups, as in Docker.
pub fn lookup(passwd: &[u8], group: &[u8], spec: &str) -> Result<Ids, AccountError> {
    let (user, group_spec) = spec.split_once(':').map_or((spec, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let account = find_user(passwd, user)?;
    let home = account.home.map_or_else(|| "/".to_owned(), |home| home.to_str_lossy().into_owned());
    if let Some(name) = group_spec.filter(|name| !name.is_empty()) {
        let gid = find_group(group, name)?;
        return Ok(Ids { uid: account.uid, gid, groups: Vec::new(), home });
    }
    let mut groups: Vec<u32> = match account.name {
        Some(name) => lines(group, 4)
            .filter(|fields| fields[3].split_str(",").any(|member| member == name.as_bytes()))
            .filter_map(|fields| number(fields[2]))
            .collect(),
        None => Vec::new(),
    };
    groups.sort_unstable();
    groups.dedup();
    Ok(Ids { uid: account.uid, gid: account.gid.unwrap_or(0), groups, home })
}

/// Looks up the user and group of `--chown`, and of USER for WORKDIR. A number without a group is its own group; a
/// name's group is its primary one. As in BuildKit, a name that is not there is no error: unlike for a step, there is
/// an owner to fall back on, which is root, or the user's group.
pub fn owner(
    passwd: &[u8],
    group: &[u8],
    user: &str,
    group_spec: Option<&str>,
) -> Result<(u32, u32), AccountError> {
    let gid = match group_spec.filter(|name| !name.is_empty()).map(|name| find_group(group, name)) {
        None | Some(Err(AccountError::Group(_))) => None,
        Some(found) => Some(found?),
    };
    if user.is_empty() {
        return Ok((0, gid.unwrap_or(0)));
    }
    if let Some(uid) = parse(user)? {
        return Ok((uid, gid.unwrap_or(uid)));
    }
    match find_user(passwd, user) {
        Err(AccountError::User(_)) => Ok((0, gid.unwrap_or(0))),
        found => found.map(|account| (account.uid, gid.or(account.gid).unwrap_or(account.uid))),
    }
}

/// Whether looking `name` up needs the file at all.
pub fn is_numeric(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

struct Account<'f> {
    name: Option<&'f BStr>,
    uid: u32,
    gid: Option<u32>,
    home: Option<&'f BStr>,
}

fn find_user<'f>(passwd: &'f [u8], user: &str) -> Result<Account<'f>, AccountError> {
    let uid = parse(user)?;
    for fields in lines(passwd, 4) {
        let Some(this) = number(fields[2]) else { continue };
        if fields[0] == user.as_bytes() || uid == Some(this) {
            let home = fields.get(5).copied().filter(|home| !home.is_empty());
            return Ok(Account { name: Some(fields[0]), uid: this, gid: number(fields[3]), home });
        }
    }
    match uid {
        Some(uid) => Ok(Account { name: None, uid, gid: None, home: None }),
        None => Err(AccountError::User(user.to_owned())),
    }
}

fn find_group(group: &[u8], name: &str) -> Result<u32, AccountError> {
    if let Some(gid) = parse(name)? {
        return Ok(gid);
    }
    lines(group, 3)
        .find(|fields| fields[0] == name.as_bytes())
        .and_then(|fields| number(fields[2]))
        .ok_or_else(|| AccountError::Group(name.to_owned()))
}

/// `text` as an id, if it is a number at all. One that does not fit is an error, not a name.
fn parse(text: &str) -> Result<Option<u32>, AccountError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !is_numeric(digits) {
        return Ok(None);
    }
    let id = text.parse().ok().filter(|id| *id <= MAX_ID && is_numeric(text));
    id.map(Some).ok_or_else(|| AccountError::OutOfRange(text.to_owned()))
}

fn number(field: &[u8]) -> Option<u32> {
    let text = field.to_str().ok().filter(|text| is_numeric(text))?;
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

/// The lines with at least `fields` fields; comments and `+` lines of NIS left out.
fn lines(file: &[u8], fields: usize) -> impl Iterator<Item = Vec<&BStr>> {
    file.lines()
        .filter(|line| !line.starts_with(b"#") && !line.starts_with(b"+") && !line.is_empty())
        .map(|line| line.splitn_str(8, ":").map(|field| field.trim().as_bstr()).collect::<Vec<_>>())
        .filter(move |line| line.len() >= fields && !line[0].is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# note\nbin:x:2:2:bin:/bin:/sbin/nologin\n\
        http:x:1000:1001:web,,,:/home/http:/bin/sh\nbig:x:4294967296:0::/:\nneg:x:-1:0::/:\nbroken\n\
        1234:x:77:88::/n:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:root\nadm:x:4:root,http\nwww:x:1001:\nvideo:x:44:http,bin\nbad:x:99999999999:http\n";

    #[test]
    fn users_run_with_their_groups() {
        let ids = |uid, gid, groups: &[u32], home: &str| {
            Ok(Ids { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
        };
        for (spec, want) in [
            ("", ids(0, 0, &[0, 4], "/root")),
            ("root", ids(0, 0, &[0, 4], "/root")),
            ("http", ids(1000, 1001, &[4, 44], "/home/http")),
            ("1000", ids(1000, 1001, &[4, 44], "/home/http")),
            ("http:adm", ids(1000, 4, &[], "/home/http")),
            ("http:7", ids(1000, 7, &[], "/home/http")),
            ("4711", ids(4711, 0, &[], "/")),
            ("4711:4712", ids(4711, 4712, &[], "/")),
            ("nobody", Err(AccountError::User("nobody".to_owned()))),
            ("root:nobody", Err(AccountError::Group("nobody".to_owned()))),
            ("big", Err(AccountError::User("big".to_owned()))),
            ("neg", Err(AccountError::User("neg".to_owned()))),
            ("1e3", Err(AccountError::User("1e3".to_owned()))),
            ("4294967296", Err(AccountError::OutOfRange("4294967296".to_owned()))),
            ("2147483648:0", Err(AccountError::OutOfRange("2147483648".to_owned()))),
            ("-1", Err(AccountError::OutOfRange("-1".to_owned()))),
            ("0:4294967295", Err(AccountError::OutOfRange("4294967295".to_owned()))),
        ] {
            assert_eq!(lookup(PASSWD, GROUP, spec), want, "{spec}");
        }
    }

    #[test]
    fn owners_of_copied_files() {
        for (user, group, want) in [
            ("1", Some("2"), Ok((1, 2))),
            ("1", None, Ok((1, 1))),
            ("1", Some("adm"), Ok((1, 4))),
            ("bin", None, Ok((2, 2))),
            ("http", None, Ok((1000, 1001))),
            ("http", Some("video"), Ok((1000, 44))),
            ("", Some("5"), Ok((0, 5))),
            ("1000", None, Ok((1000, 1000))),
            ("ghost", None, Ok((0, 0))),
            ("ghost", Some("adm"), Ok((0, 4))),
            ("http", Some("ghosts"), Ok((1000, 1001))),
            ("7", Some("ghosts"), Ok((7, 7))),
            ("99999999999", None, Err(AccountError::OutOfRange("99999999999".to_owned()))),
        ] {
            assert_eq!(owner(PASSWD, GROUP, user, group), want, "{user}:{group:?}");
        }
    }
}
