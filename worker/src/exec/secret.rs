//! A value that nobody may see: no `Display`, `Serialize` or `Hash`, and a `Debug` that says nothing.

/// Bytes of a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Largest secret, as in BuildKit.
    pub const MAX: usize = 500 * 1024;

    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes: only for the file or the variable in the sandbox.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
