//! Capabilities of a process.

use rustix::thread::CapabilitySet;

/// What Docker and BuildKit leave a process: `0xa80425fb`.
pub const DEFAULT: CapabilitySet = CapabilitySet::from_bits_retain(
    CapabilitySet::CHOWN.bits()
        | CapabilitySet::DAC_OVERRIDE.bits()
        | CapabilitySet::FSETID.bits()
        | CapabilitySet::FOWNER.bits()
        | CapabilitySet::MKNOD.bits()
        | CapabilitySet::NET_RAW.bits()
        | CapabilitySet::SETGID.bits()
        | CapabilitySet::SETUID.bits()
        | CapabilitySet::SETFCAP.bits()
        | CapabilitySet::SETPCAP.bits()
        | CapabilitySet::NET_BIND_SERVICE.bits()
        | CapabilitySet::SYS_CHROOT.bits()
        | CapabilitySet::KILL.bits()
        | CapabilitySet::AUDIT_WRITE.bits(),
);

/// The highest number a capability can have: sets are 64 bits.
pub(crate) const NUMBERS: std::ops::Range<u32> = 0..64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_buildkits() {
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
    }
}
