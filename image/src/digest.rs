//! Digests: the names of content.
//!
//! [`Digest`] is what OCI calls a digest (image-spec, `descriptor.md`): an algorithm and its hash in lower-case hex.
//! [`DiffId`] and [`ChainId`] are digests with a meaning (image-spec, `config.md`). [`ContentDigest`] is ours: a BLAKE3
//! hash for comparing file contents and results on this machine; it never leaves in an image.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// The digest of a blob: `sha256:<64 hex>` or `sha512:<128 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// The algorithm everything we make uses.
    Sha256([u8; 32]),
    /// Accepted from outside.
    Sha512([u8; 64]),
}

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The algorithm's name as it stands before the colon.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash in lower-case hex, what stands after the colon.
    pub fn hex(&self) -> String {
        lower_hex(self.bytes())
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        lower_hex(&self.bytes()[..6])
    }

    /// The raw hash.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

/// Text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {0:?}: expected sha256:<64 lower-case hex digits> or sha512:<128>")]
pub struct DigestError(pub String);

/// Like `hex::encode`, which goes character by character.
fn lower_hex(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    hex::encode_to_slice(bytes, &mut text).expect("it is twice as long");
    String::from_utf8(text).expect("digits and letters")
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError(text.chars().take(160).collect());
        let (algorithm, hash) = text.split_once(':').ok_or_else(bad)?;
        if hash.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        match algorithm {
            "sha256" => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(hash, &mut bytes).map_err(|_| bad())?;
                Ok(Self::Sha256(bytes))
            }
            "sha512" => {
                let mut bytes = [0; 64];
                hex::decode_to_slice(hash, &mut bytes).map_err(|_| bad())?;
                Ok(Self::Sha512(bytes))
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! digest_with_meaning {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }
    };
}

digest_with_meaning! {
    /// The digest of a layer's uncompressed tar: a layer's name in our store.
    DiffId
}

digest_with_meaning! {
    /// The digest of a stack of layers (image-spec, `config.md`, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// The chain ID of `diff_ids`, bottom first; `None` for no layers at all.
    pub fn of(diff_ids: &[DiffId]) -> Option<Self> {
        Self::each(diff_ids).last()
    }

    /// The chain IDs of the lowest layer, of the lowest two, and so on.
    pub fn each(diff_ids: &[DiffId]) -> impl Iterator<Item = Self> {
        diff_ids.iter().scan(None, |chain: &mut Option<Digest>, diff_id| {
            let next = match chain {
                Some(chain) => Digest::of(format!("{chain} {diff_id}").as_bytes()),
                None => diff_id.0,
            };
            *chain = Some(next);
            Some(Self(next))
        })
    }
}

/// A BLAKE3 hash of content: file bytes, a selection of files, a step's result. Local to rbuild.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentDigest(pub [u8; 32]);

impl ContentDigest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash in lower-case hex.
    pub fn hex(&self) -> String {
        lower_hex(&self.0)
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", lower_hex(&self.0[..6]))
    }
}

/// An incremental hash for either algorithm.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256 under way.
    Sha256(sha2::Sha256),
    /// SHA-512 under way.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts a SHA-256.
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// Starts a hash of the algorithm that `digest` is of, to compare with it.
    pub fn like(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(_) => Self::sha256(),
            Digest::Sha512(_) => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

/// Bytes that are not what their descriptor promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// All bytes arrived and hash to something else.
    #[error("content does not match its digest: expected {expected}, got {actual}")]
    Digest {
        /// What the descriptor says.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// Fewer or more bytes than promised.
    #[error("content of {digest} is not {expected} bytes long: got {actual}")]
    Size {
        /// Whose content.
        digest: Digest,
        /// The promised length in bytes.
        expected: u64,
        /// The length read, at least.
        actual: u64,
    },
}

/// A reader that gives `inner`'s bytes and fails at the end, if they are not the promised ones.
///
/// Reading stops with an error at the first byte past the promised size. `Ok(0)` from [`Read::read`] means digest and
/// size were right. The error inside the [`io::Error`] is a [`VerifyError`].
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    digest: Digest,
    size: u64,
    read: u64,
    // Taken when the end was reached and checked.
    hasher: Option<Hasher>,
}

impl<R: Read> Verified<R> {
    /// Promises that `inner` has `size` bytes that hash to `digest`.
    pub fn new(inner: R, digest: Digest, size: u64) -> Self {
        Self { inner, digest, size, read: 0, hasher: Some(Hasher::like(&digest)) }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let invalid = |error: VerifyError| io::Error::new(io::ErrorKind::InvalidData, error);
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        if self.read > self.size || (n == 0 && self.read < self.size) {
            return Err(invalid(VerifyError::Size {
                digest: self.digest,
                expected: self.size,
                actual: self.read,
            }));
        }
        if n > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buf[..n]);
            }
            return Ok(n);
        }
        if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish();
            if actual != self.digest {
                return Err(invalid(VerifyError::Digest { expected: self.digest, actual }));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_digests_parse() {
        let good = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        assert_eq!(Digest::of(b"").to_string(), good);
        for bad in
            ["", "sha256", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../x"]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(good.to_uppercase().replace("SHA256", "sha256").parse::<Digest>().is_err());
        assert!(format!("{good}0").parse::<Digest>().is_err());
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(Digest::of(format!("{a} {b}").as_bytes()))));
    }

    #[test]
    fn verified_readers_fail_on_other_bytes_and_other_lengths() {
        let read = |bytes: &[u8], size| {
            let mut out = Vec::new();
            Verified::new(bytes, Digest::of(b"hello"), size).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(b"hello", 5).unwrap(), b"hello");
        assert!(read(b"hellO", 5).unwrap_err().to_string().contains("does not match"));
        assert!(read(b"hell", 5).unwrap_err().to_string().contains("5 bytes"));
        assert!(read(b"hello!", 5).unwrap_err().to_string().contains("5 bytes"));
    }
}
