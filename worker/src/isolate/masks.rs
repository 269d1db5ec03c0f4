//! What of `/proc` and `/sys` a process must not read or write. Data only.

use std::ffi::CStr;

/// Unreadable: files get the null device over them, directories an empty one.
pub(crate) const MASKED: &[&CStr] = &[
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/sys/firmware",
    c"/sys/devices/virtual/powercap",
];

/// Unwritable.
pub(crate) const READ_ONLY: &[&CStr] =
    &[c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// Devices that every process has: name under `/dev`, and the host's. The null device is first.
pub(crate) const DEVICES: &[(&CStr, &CStr)] = &[
    (c"null", c"/dev/null"),
    (c"zero", c"/dev/zero"),
    (c"full", c"/dev/full"),
    (c"random", c"/dev/random"),
    (c"urandom", c"/dev/urandom"),
    (c"tty", c"/dev/tty"),
];

/// Devices that a process in the insecure sandbox has if the host has them.
pub(crate) const INSECURE_DEVICES: &[(&CStr, &CStr)] = &[
    (c"kmsg", c"/dev/kmsg"),
    (c"cuse", c"/dev/cuse"),
    (c"fuse", c"/dev/fuse"),
    (c"kvm", c"/dev/kvm"),
    (c"loop-control", c"/dev/loop-control"),
];

/// Links in `/dev`: name and where it leads.
pub(crate) const LINKS: &[(&CStr, &CStr)] = &[
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"core", c"/proc/kcore"),
    (c"ptmx", c"pts/ptmx"),
];
