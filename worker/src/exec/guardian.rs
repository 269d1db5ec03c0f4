//! Ends steps whose parent was killed.
//!
//! The kernel kills a step when rbuild dies, but forgets that when the step's first process becomes another user
//! (`su`, `sudo` and `gosu` as a step's command do). So a small process, a clone without memory of its own business,
//! holds a descriptor of every running step; when rbuild is gone, however it ended, it kills them and ends. It is made
//! with the first step and costs less than one.

use std::convert::Infallible;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::setsid;

use crate::sys::clone3::{InChild, clone3, exit};
use crate::sys::close_range::close_from;
use crate::sys::fd::move_to;
use crate::sys::pidfd::send_signal;
use crate::sys::signal;

/// More steps than run at a time; what is beyond is left to the kernel alone.
const MOST: usize = 512;

/// Puts a process under guard. Best effort: without a guardian, the kernel does what it does.
pub(super) fn watch(pidfd: BorrowedFd<'_>) {
    static GUARDIAN: OnceLock<Option<OwnedFd>> = OnceLock::new();
    if let Some(guardian) = GUARDIAN.get_or_init(|| start().ok()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [pidfd];
        if control.push(SendAncillaryMessage::ScmRights(&fds)) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _gone = sendmsg(guardian, &[IoSlice::new(b"p")], &mut control, flags);
        }
    }
}

fn start() -> Result<OwnedFd, Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut theirs = Some(theirs);
    let mut guarded: Vec<Option<OwnedFd>> = Vec::with_capacity(MOST);
    guarded.resize_with(MOST, || None);
    // Its end is nobody's business: it comes after ours.
    clone3(0, None, &mut |child| match theirs.take() {
        Some(socket) => guard(&child, socket, &mut guarded),
        None => exit(1),
    })?;
    Ok(ours)
}

/// Does not allocate: see `sys::clone3`.
fn guard(child: &InChild, socket: OwnedFd, guarded: &mut [Option<OwnedFd>]) -> Infallible {
    // Not in rbuild's process group, so that Ctrl-C does not end it first.
    let _already_leader = setsid();
    signal::reset();
    // Nothing of rbuild is held: neither a terminal, nor a pipe that somebody waits on, nor a lock.
    let Ok(socket) = move_to(child, socket, 0) else { exit(1) };
    if close_from(child, 1).is_err() {
        exit(1);
    }
    loop {
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => break,
        }
        match next(&socket) {
            Some(fd) => keep(guarded, fd),
            None => break,
        }
    }
    for fd in guarded.iter().flatten() {
        let _ended = send_signal(fd.as_fd(), libc::SIGKILL);
    }
    exit(0)
}

fn next(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Takes the place of a process that has ended, or a free one.
fn keep(guarded: &mut [Option<OwnedFd>], fd: OwnedFd) {
    for slot in guarded {
        let free = match slot {
            None => true,
            Some(held) => {
                let mut polled = [PollFd::new(held, PollFlags::IN)];
                let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0)
            }
        };
        if free {
            *slot = Some(fd);
            return;
        }
    }
}
