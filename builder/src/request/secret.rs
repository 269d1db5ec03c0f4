//! `--secret` and `--ssh`: where what steps are trusted with is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use worker::exec::Secret;

use super::Environment;
use super::text::csv;
use crate::failure::Failure;

/// Where a secret's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretSource {
    File(PathBuf),
    Env(String),
}

pub(super) fn secret(text: &str, environment: Environment<'_>) -> Result<(String, SecretSource), Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid --secret {text:?}: {why}"));
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in csv(text).map_err(|error| invalid(&error))? {
        let (key, value) = field.split_once('=').ok_or_else(|| invalid("expected key=value"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => file = Some(value.to_owned()),
            "env" => variable = Some(value.to_owned()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            "type" => return Err(invalid("type is file or env")),
            other => return Err(invalid(&format!("unknown key {other:?}"))),
        }
    }
    let id = id.ok_or_else(|| invalid("id is missing"))?;
    let source = match (file, variable, kind.as_deref()) {
        (None, Some(variable), _) => SecretSource::Env(variable),
        (Some(name), None, Some("env")) => SecretSource::Env(name),
        (Some(path), None, _) => SecretSource::File(path.into()),
        (None, None, Some("env")) => SecretSource::Env(id.clone()),
        (None, None, None) if environment(&id).is_some() => SecretSource::Env(id.clone()),
        (None, None, _) => SecretSource::File(id.clone().into()),
        (Some(_), Some(_), _) => return Err(invalid("src and env cannot be used together")),
    };
    match &source {
        SecretSource::File(path) if !path.is_file() => {
            Err(invalid(&format!("there is no file {}", path.display())))
        }
        _ => Ok((id, source)),
    }
}

pub(super) fn ssh(text: &str, environment: Environment<'_>) -> Result<(String, Vec<PathBuf>), Failure> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    let mut paths: Vec<PathBuf> =
        paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let agent = environment("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).ok_or_else(|| {
            Failure::usage(format!(
                "invalid --ssh {text:?}: SSH_AUTH_SOCK is not set and no socket or key is given"
            ))
        })?;
        paths.push(agent.into());
    }
    // Whether it is a socket or a key is `agent`'s business: a step sees a socket, never a key.
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::usage(format!("invalid --ssh {text:?}: there is no {}", missing.display())));
    }
    Ok((if id.is_empty() { "default" } else { id }.to_owned(), paths))
}

/// The values of `--secret`.
pub(crate) fn secrets(sources: &BTreeMap<String, SecretSource>) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut secrets = BTreeMap::new();
    for (id, source) in sources {
        let value = match source {
            SecretSource::File(path) => std::fs::read(path).map_err(|error| {
                Failure::usage(format!("could not read secret {id} from {}: {error}", path.display()))
            })?,
            SecretSource::Env(name) => std::env::var_os(name).unwrap_or_default().into_encoded_bytes(),
        };
        secrets.insert(id.clone(), Secret::new(value));
    }
    Ok(secrets)
}
