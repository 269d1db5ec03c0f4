//! The system call filter as the kernel applies it: this binary runs itself in a sandbox and makes raw calls there.
#![expect(unsafe_code, reason = "a probe of raw system calls makes raw system calls")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the probe reports on its output, tests say what they skip"
)]

use worker::exec::{Identity, Network, Plan, Root, Status, Stdio, spawn};

/// What is expected of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The kernel got it: it worked, or failed by itself.
    Passed,
    Refused,
    NoSuchCall,
}

use Answer::{NoSuchCall, Passed, Refused};

/// Call, first arguments, answer. Arguments are such that nothing happens if it passes.
fn table() -> Vec<(&'static str, i64, [i64; 3], Answer)> {
    let bad = -1;
    vec![
        ("getpid", libc::SYS_getpid, [0; 3], Passed),
        ("read", libc::SYS_read, [bad, 0, 0], Passed),
        ("ptrace", libc::SYS_ptrace, [bad, 0, 0], Passed),
        ("process_vm_readv", libc::SYS_process_vm_readv, [bad, 0, 0], Passed),
        ("chroot", libc::SYS_chroot, [0; 3], Passed),
        ("memfd_create", libc::SYS_memfd_create, [0; 3], Passed),
        ("statx", libc::SYS_statx, [bad, 0, 0], Passed),
        ("openat2", libc::SYS_openat2, [bad, 0, 0], Passed),
        ("close_range", libc::SYS_close_range, [1000, 1001, 0], Passed),
        ("pidfd_open", libc::SYS_pidfd_open, [bad, 0, 0], Passed),
        ("seccomp", libc::SYS_seccomp, [bad, 0, 0], Passed),
        ("copy_file_range", libc::SYS_copy_file_range, [bad, 0, bad], Passed),
        ("name_to_handle_at", libc::SYS_name_to_handle_at, [bad, 0, 0], Passed),
        ("socket unix", libc::SYS_socket, [1, 1, 0], Passed),
        ("socket netlink", libc::SYS_socket, [16, 3, 0], Passed),
        ("socket alg", libc::SYS_socket, [38, 5, 0], Refused),
        ("socket vsock", libc::SYS_socket, [40, 1, 0], Refused),
        ("personality 0", libc::SYS_personality, [0; 3], Passed),
        ("personality query", libc::SYS_personality, [0xFFFF_FFFF, 0, 0], Passed),
        ("personality no-random", libc::SYS_personality, [0x0004_0000, 0, 0], Refused),
        ("clone newuser", libc::SYS_clone, [0x1000_0000, 0, 0], Refused),
        ("clone newns", libc::SYS_clone, [0x0002_0000, 0, 0], Refused),
        ("clone3", libc::SYS_clone3, [0; 3], NoSuchCall),
        ("unshare", libc::SYS_unshare, [0x1000_0000, 0, 0], Refused),
        ("setns", libc::SYS_setns, [bad, 0, 0], Refused),
        ("mount", libc::SYS_mount, [0; 3], Refused),
        ("umount2", libc::SYS_umount2, [0; 3], Refused),
        ("pivot_root", libc::SYS_pivot_root, [0; 3], Refused),
        ("fsopen", libc::SYS_fsopen, [0; 3], Refused),
        ("fsmount", libc::SYS_fsmount, [bad, 0, 0], Refused),
        ("move_mount", libc::SYS_move_mount, [bad, 0, bad], Refused),
        ("open_tree", libc::SYS_open_tree, [bad, 0, 0], Refused),
        ("mount_setattr", libc::SYS_mount_setattr, [bad, 0, 0], Refused),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [bad, 0, 0], Refused),
        ("keyctl", libc::SYS_keyctl, [bad, 0, 0], Refused),
        ("add_key", libc::SYS_add_key, [0; 3], Refused),
        ("request_key", libc::SYS_request_key, [0; 3], Refused),
        ("bpf", libc::SYS_bpf, [bad, 0, 0], Refused),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 3], Refused),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 3], Refused),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 3], Refused),
        ("kexec_load", libc::SYS_kexec_load, [0; 3], Refused),
        ("init_module", libc::SYS_init_module, [0; 3], Refused),
        ("delete_module", libc::SYS_delete_module, [0; 3], Refused),
        ("reboot", libc::SYS_reboot, [0; 3], Refused),
        ("swapon", libc::SYS_swapon, [0; 3], Refused),
        ("acct", libc::SYS_acct, [0; 3], Refused),
        ("quotactl", libc::SYS_quotactl, [0; 3], Refused),
        ("syslog", libc::SYS_syslog, [2, 0, 0], Refused),
        ("sethostname", libc::SYS_sethostname, [0; 3], Refused),
        ("settimeofday", libc::SYS_settimeofday, [0; 3], Refused),
        ("clock_settime", libc::SYS_clock_settime, [bad, 0, 0], Refused),
        ("open_tree_attr, newer than the table", 467, [bad, 0, 0], NoSuchCall),
        ("a call of the future", 2000, [0; 3], NoSuchCall),
        #[cfg(target_arch = "x86_64")]
        ("iopl", libc::SYS_iopl, [0; 3], Refused),
        #[cfg(target_arch = "x86_64")]
        ("getpid of x32", 0x4000_0000 + libc::SYS_getpid, [0; 3], NoSuchCall),
    ]
}

fn answer(result: i64) -> Answer {
    match -result {
        1 => Refused,
        38 => NoSuchCall,
        _ => Passed,
    }
}

/// Calls by the numbers for 32-bit programs.
#[cfg(target_arch = "x86_64")]
const COMPATIBLE: &[(&str, u32, Answer)] = &[
    ("getpid", 20, Passed),
    ("socketcall", 102, Passed),
    ("mount", 21, Refused),
    ("keyctl", 288, Refused),
    ("unshare", 310, Refused),
    ("clone3", 435, NoSuchCall),
    ("a call of the future", 2000, NoSuchCall),
];

/// Runs inside the sandbox only.
#[test]
#[ignore = "the probe, started by the test below"]
fn probe() {
    for (name, number, arguments, want) in table() {
        let [a, b, c] = arguments;
        // SAFETY: the arguments are bad descriptors and null pointers, which the kernel refuses.
        let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
        let result = if result == -1 {
            -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap())
        } else {
            result
        };
        if answer(result) != want {
            println!("BAD {name}: {result}, not {want:?}");
        }
    }
    println!("NATIVE DONE");
    #[cfg(target_arch = "x86_64")]
    for (name, number, want) in COMPATIBLE {
        let mut result = *number as i32;
        // SAFETY: the 32-bit entry changes eax and, depending on the processor, r8 to r11; all arguments are null.
        unsafe {
            std::arch::asm!(
                "push rbx", "xor ebx, ebx", "int 0x80", "pop rbx",
                inout("eax") result, in("ecx") 0, in("edx") 0, in("esi") 0, in("edi") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if answer(i64::from(result)) != *want {
            println!("BAD 32-bit {name}: {result}, not {want:?}");
        }
    }
    println!("ALL DONE");
}

#[test]
fn the_kernel_answers_every_call_as_the_profile_says() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let plan = Plan {
        root: Root::Directory { path: "/".into(), readonly: true },
        read_only: false,
        skeletons: None,
        mounts: vec![],
        args: ["--exact", "probe", "--ignored", "--nocapture", "--test-threads=1"].map(String::from).to_vec(),
        env: vec![],
        secret_env: vec![],
        cwd: "/".into(),
        identity: Identity::default(),
        hostname: "probe".into(),
        network: Network::Host,
        security: solver::op::Security::Sandbox,
        no_new_privileges: false,
        limits: vec![],
        shm_size: 64 << 20,
        group: Default::default(),
    };
    let mut plan = plan;
    plan.args.insert(0, std::env::current_exe().unwrap().to_str().unwrap().to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (exit, output) = runtime.block_on(async {
        let mut child = spawn(&plan, Stdio::Piped { stdin: None }).await.unwrap();
        let mut output = Vec::new();
        let exit = child.run(|_, bytes| output.extend_from_slice(bytes)).await.unwrap();
        (exit, String::from_utf8_lossy(&output).into_owned())
    });
    assert!(!output.contains("BAD") && output.contains("NATIVE DONE"), "{exit:?} {output}");
    if exit.status == Status::Signal(libc::SIGSEGV) {
        eprintln!("SKIPPED: the 32-bit calls, which this kernel does not have");
        return;
    }
    assert!(exit.success() && output.contains("ALL DONE"), "{exit:?} {output}");
}
