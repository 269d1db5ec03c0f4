//! How a layer says that something is gone (image-spec, `layer.md`, "Whiteouts"), and what overlayfs must never be told
//! by a stranger.
//!
//! In a tar a deletion is an empty file: `.wh.x` hides `x`, `.wh..wh..opq` hides all that lower layers have in its
//! directory. Names that begin with `.wh.` are therefore not free for real files.

/// What the names of deletions begin with.
pub const PREFIX: &[u8] = b".wh.";

/// The name that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a file name means in a layer's tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// A real name.
    Name,
    /// This sibling is gone.
    Whiteout(&'a [u8]),
    /// The directory is opaque.
    Opaque,
    /// Left over by AUFS (`.wh..wh.plnk` and the like): means nothing.
    Metadata,
    /// A deletion of nothing, of `.` or of `..`.
    Invalid,
}

/// Says what the file name `name` means.
pub fn classify(name: &[u8]) -> Marker<'_> {
    let Some(hidden) = name.strip_prefix(PREFIX) else { return Marker::Name };
    match hidden {
        b"" | b"." | b".." => Marker::Invalid,
        _ if name == OPAQUE => Marker::Opaque,
        _ if hidden.starts_with(PREFIX) => Marker::Metadata,
        _ => Marker::Whiteout(hidden),
    }
}

/// Whether an extended attribute has no place in a layer: overlayfs' own would let a layer redirect, hide or borrow
/// files when it is mounted, and an SELinux label belongs to the host.
pub fn is_unwanted_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name == b"security.selinux"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_deletions() {
        for (name, marker) in [
            (&b"x"[..], Marker::Name),
            (b".wh", Marker::Name),
            (b".whx", Marker::Name),
            (b".wh.x", Marker::Whiteout(b"x")),
            (b".wh..x", Marker::Whiteout(b".x")),
            (b".wh....", Marker::Whiteout(b"...")),
            (b".wh..wh..opq", Marker::Opaque),
            (b".wh..wh.plnk", Marker::Metadata),
            (b".wh..wh.", Marker::Metadata),
            (b".wh.", Marker::Invalid),
            (b".wh..", Marker::Invalid),
            (b".wh...", Marker::Invalid),
        ] {
            assert_eq!(classify(name), marker, "{}", bstr::BStr::new(name));
        }
    }
}
