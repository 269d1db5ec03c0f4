//! `--chown` names: looked up in the base's own account files.

use std::io::Read;

use bstr::ByteSlice;
use image::tree::resolve::{Last, resolve};
use image::tree::{Tree, accounts};
use solver::op::Owner;

use super::{FileError, Files, Input};

/// The ids of `owner` in `base`.
pub(super) fn resolve_owner(
    owner: &Owner,
    base: &Input,
    files: &mut Files<'_>,
) -> Result<(u32, u32), FileError> {
    let named = |name: &str| !name.is_empty() && !accounts::is_numeric(name);
    let passwd = if named(&owner.user) { read(&base.tree, "etc/passwd", files)? } else { Vec::new() };
    let group = match owner.group.as_deref() {
        Some(name) if named(name) => read(&base.tree, "etc/group", files)?,
        _ => Vec::new(),
    };
    Ok(accounts::owner(&passwd, &group, &owner.user, owner.group.as_deref())?)
}

/// The bytes of an account file; a tree without it has none.
pub(crate) fn read(tree: &Tree, path: &str, files: &mut Files<'_>) -> Result<Vec<u8>, FileError> {
    let failed = |problem: String| FileError::Accounts { path: format!("/{path}"), problem };
    let at = resolve(tree, path.as_bytes(), Last::Follow).map_err(|error| failed(error.to_string()))?;
    let Some(node) = tree.get(&at) else { return Ok(Vec::new()) };
    let inode = node.inode().ok_or_else(|| failed(format!("/{} is not a regular file", at.as_bstr())))?;
    if inode.size > accounts::MAX_FILE {
        return Err(failed(format!("it has {} bytes, more than {}", inode.size, accounts::MAX_FILE)));
    }
    let mut bytes = Vec::new();
    let mut reader = files.open(&inode.location)?.take(accounts::MAX_FILE);
    reader.read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    Ok(bytes)
}
