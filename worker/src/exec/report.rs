//! What the child tells the parent before it becomes the command: what it made, its terminal, or why it failed.
//!
//! One message a packet of a socket that closes on `execve`: the end of the stream means that the command runs.
//! Encoding allocates nothing.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};

use super::stub::modified;
use super::target::Kind;

/// What the child was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Parent,
    Private,
    Group,
    Loopback,
    Hostname,
    Source,
    Root,
    Proc,
    Dev,
    Device,
    Pts,
    Shm,
    Mqueue,
    Sys,
    Mount,
    Mask,
    ReadOnly,
    Directory,
    Terminal,
    Pivot,
    Limit,
    Filter,
    Capabilities,
    User,
    Standard,
    Exec,
}

impl Phase {
    const ALL: [Self; 26] = [
        Self::Parent,
        Self::Private,
        Self::Group,
        Self::Loopback,
        Self::Hostname,
        Self::Source,
        Self::Root,
        Self::Proc,
        Self::Dev,
        Self::Device,
        Self::Pts,
        Self::Shm,
        Self::Mqueue,
        Self::Sys,
        Self::Mount,
        Self::Mask,
        Self::ReadOnly,
        Self::Directory,
        Self::Terminal,
        Self::Pivot,
        Self::Limit,
        Self::Filter,
        Self::Capabilities,
        Self::User,
        Self::Standard,
        Self::Exec,
    ];
}

/// Why the child did not become the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) phase: Phase,
    /// Which of several: mount, device, limit.
    pub(super) index: u32,
    pub(super) errno: Errno,
}

/// A mount point that was made in the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stub {
    /// Path in the root, without links.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) parent: Before,
    /// Modification time of the parent with the stub in it.
    pub(super) after: (i64, u32),
}

/// A directory before something was made in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

/// A message.
#[derive(Debug)]
pub(super) enum Message {
    Failed(Failure),
    Made(Stub),
    Terminal(OwnedFd),
}

const FAILED: u8 = 1;
const MADE: u8 = 2;
const TERMINAL: u8 = 3;
/// The longest message: a stub with the longest path.
const SIZE: usize = HEADER + 4096;
const HEADER: usize = 38;

/// Tells the parent about a failure. If the parent is gone there is nobody to tell.
pub(super) fn send_failure(to: BorrowedFd<'_>, failure: Failure) {
    let mut message = [0; 10];
    message[0] = FAILED;
    message[1] = failure.phase as u8;
    message[2..6].copy_from_slice(&failure.index.to_le_bytes());
    message[6..10].copy_from_slice(&failure.errno.raw_os_error().to_le_bytes());
    let _gone = send(to, &message, SendFlags::NOSIGNAL);
}

/// Tells the parent about a mount point that was made.
pub(super) fn send_made(
    to: BorrowedFd<'_>,
    path: &CStr,
    kind: Kind,
    before: &Stat,
    after: &Stat,
) -> Result<(), Errno> {
    let mut message = [0; SIZE];
    message[0] = MADE;
    message[1] = u8::from(kind == Kind::Directory);
    message[2..6].copy_from_slice(&before.st_mode.to_le_bytes());
    message[6..10].copy_from_slice(&before.st_uid.to_le_bytes());
    message[10..14].copy_from_slice(&before.st_gid.to_le_bytes());
    for (at, stat) in [(14, before), (26, after)] {
        let (seconds, nanoseconds) = modified(stat);
        message[at..at + 8].copy_from_slice(&seconds.to_le_bytes());
        message[at + 8..at + 12].copy_from_slice(&nanoseconds.to_le_bytes());
    }
    let path = path.to_bytes();
    let end = HEADER + path.len();
    message.get_mut(HEADER..end).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(path);
    send(to, &message[..end], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Hands the controlling end of the terminal to the parent.
pub(super) fn send_terminal(to: BorrowedFd<'_>, terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(to, &[IoSlice::new(&[TERMINAL])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message; `None` at the end of the stream. `WOULDBLOCK` if there is none yet.
pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut buffer = [0; SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let length = recvmsg(from, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?.bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match buffer[..length].first() {
        None => Ok(None),
        Some(&TERMINAL) => fd.map(|fd| Some(Message::Terminal(fd))).ok_or(Errno::BADMSG),
        Some(_) => decode(&buffer[..length]).map(Some).ok_or(Errno::BADMSG),
    }
}

fn decode(message: &[u8]) -> Option<Message> {
    let word = |at: usize| Some(u32::from_le_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let time =
        |at: usize| Some((i64::from_le_bytes(message.get(at..at + 8)?.try_into().ok()?), word(at + 8)?));
    match *message.first()? {
        FAILED => Some(Message::Failed(Failure {
            phase: *Phase::ALL.get(usize::from(*message.get(1)?))?,
            index: word(2)?,
            errno: Errno::from_raw_os_error(word(6)? as i32),
        })),
        MADE => Some(Message::Made(Stub {
            kind: if *message.get(1)? == 1 { Kind::Directory } else { Kind::File },
            parent: Before { mode: word(2)?, uid: word(6)?, gid: word(10)?, mtime: time(14)? },
            after: time(26)?,
            path: message.get(HEADER..)?.to_vec(),
        })),
        _ => None,
    }
}

/// The two ends: the parent's and the child's.
pub(super) fn channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (parent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Above the standard descriptors, which the child makes last.
    Ok((parent, above_standard(child)?))
}

/// The descriptor, if it is above 2, or a copy that is.
pub(super) fn above_standard(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > 2 { Ok(fd) } else { rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent_and_end_with_the_child() {
        let (parent, child) = channel().unwrap();
        assert_eq!(receive(parent.as_fd()).unwrap_err(), Errno::WOULDBLOCK);
        for phase in Phase::ALL {
            let failure = Failure { phase, index: 7, errno: Errno::PERM };
            send_failure(child.as_fd(), failure);
            let Some(Message::Failed(got)) = receive(parent.as_fd()).unwrap() else { panic!("{phase:?}") };
            assert_eq!(got, failure);
        }
        let stat = rustix::fs::stat("/").unwrap();
        send_made(child.as_fd(), c"a/b", Kind::Directory, &stat, &stat).unwrap();
        let Some(Message::Made(stub)) = receive(parent.as_fd()).unwrap() else { panic!() };
        assert_eq!((stub.path.as_slice(), stub.kind), (&b"a/b"[..], Kind::Directory));
        assert_eq!((stub.parent.mtime, stub.after), (modified(&stat), modified(&stat)));
        send_terminal(child.as_fd(), child.as_fd()).unwrap();
        assert!(matches!(receive(parent.as_fd()).unwrap(), Some(Message::Terminal(_))));
        drop(child);
        assert!(receive(parent.as_fd()).unwrap().is_none());
    }
}
