//! `type=s3|gcs|azblob|redis|fs` through Apache OpenDAL, each behind the feature of its name.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::StreamExt as _;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, Operator};
use worker::error::WorkerError;

use crate::cache::CacheError;
use crate::cache::options::{Objects, Service};

/// Objects go in parts of this length, bytes: the shortest that S3 takes is 5 MiB.
const PART: usize = 8 << 20;
/// Parts of an object that come at the same time.
const AT_ONCE: usize = 4;

/// The store that is meant. Nothing is asked yet.
pub(super) fn operator(objects: &Objects) -> Result<Operator, CacheError> {
    store::registry::install_crypto();
    opendal_http_transport_reqwest::install_default();
    Ok(plain(objects)?.layer(TimeoutLayer::new()).layer(RetryLayer::new().with_jitter()))
}

/// The length of an object; `None`: it is not there.
pub(super) async fn size(operator: &Operator, path: &str) -> Result<Option<u64>, CacheError> {
    match operator.stat(path).await {
        Ok(found) => Ok(Some(found.content_length())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// An object, or the first `limit` bytes of a longer one; `None`: it is not there.
pub(super) async fn read(operator: &Operator, path: &str, limit: u64) -> Result<Option<Bytes>, CacheError> {
    // A range that ends behind the object is an error of some stores.
    let Some(size) = size(operator, path).await? else { return Ok(None) };
    let bytes = operator.reader(path).await?.read(0..size.min(limit)).await?;
    Ok(Some(bytes.to_bytes()))
}

/// Gives the first `size` bytes of an object to `take` as they come. `false`: it is not there.
pub(super) async fn stream(
    operator: &Operator,
    path: &str,
    size: u64,
    mut take: impl AsyncFnMut(Bytes) -> Result<(), CacheError>,
) -> Result<bool, CacheError> {
    let reader = operator.reader_with(path).chunk(PART).concurrent(AT_ONCE).await?;
    let mut bytes = reader.into_bytes_stream(0..size).await?;
    while let Some(part) = bytes.next().await {
        match part {
            Ok(part) => take(part).await?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(WorkerError::Io { path: path.into(), source }.into()),
        }
    }
    Ok(true)
}

/// Writes a file as an object.
pub(super) async fn put(operator: &Operator, path: &str, from: &Path, size: u64) -> Result<(), CacheError> {
    let failed = |source| WorkerError::Io { path: from.to_owned(), source };
    let mut file = File::open(from).map_err(failed)?;
    let mut writer = operator.writer(path).await?;
    loop {
        let mut part = Vec::with_capacity(PART.min(usize::try_from(size).unwrap_or(PART)));
        file.by_ref().take(PART as u64).read_to_end(&mut part).map_err(failed)?;
        if part.is_empty() {
            break;
        }
        writer.write(part).await?;
    }
    writer.close().await?;
    Ok(())
}

/// Writes an object in the place of what is there.
pub(super) async fn replace(operator: &Operator, path: &str, bytes: Bytes) -> Result<(), CacheError> {
    operator.write(path, bytes).await?;
    Ok(())
}

/// Without layers.
fn plain(objects: &Objects) -> Result<Operator, CacheError> {
    // What a service does not need is not set; what it needs it asks for.
    let set = |name: &str| objects.settings.get(name).map_or("", String::as_str);
    match objects.service {
        #[cfg(feature = "s3")]
        Service::S3 => {
            let mut s3 = ::opendal::services::S3::default()
                .bucket(set("bucket"))
                .region(set("region"))
                .access_key_id(set("access_key_id"))
                .secret_access_key(set("secret_access_key"))
                .session_token(set("session_token"));
            let endpoint = set("endpoint_url");
            if !endpoint.is_empty() {
                s3 = s3.endpoint(endpoint);
            }
            // As in BuildKit the bucket is in the host name, unless another endpoint says otherwise.
            if endpoint.is_empty() || set("use_path_style") != "true" {
                s3 = s3.enable_virtual_host_style();
            }
            Ok(Operator::new(s3)?)
        }
        #[cfg(feature = "gcs")]
        Service::Gcs => {
            let mut gcs = ::opendal::services::Gcs::default()
                .bucket(set("bucket"))
                .credential_path(set("credential_path"));
            if !set("endpoint_url").is_empty() {
                gcs = gcs.endpoint(set("endpoint_url"));
            }
            Ok(Operator::new(gcs)?)
        }
        #[cfg(feature = "azblob")]
        Service::Azblob => Ok(Operator::new(
            ::opendal::services::Azblob::default()
                .container(set("container"))
                .endpoint(set("account_url"))
                .account_name(set("account_name"))
                .account_key(set("secret_access_key")),
        )?),
        #[cfg(feature = "redis")]
        Service::Redis => Ok(Operator::new(
            ::opendal::services::Redis::default()
                .endpoint(set("url"))
                .username(set("username"))
                .password(set("password")),
        )?),
        #[cfg(feature = "fs")]
        Service::Fs => Ok(Operator::new(::opendal::services::Fs::default().root(set("root")))?),
        #[allow(unreachable_patterns, reason = "with all features there is no other service")]
        service => Err(CacheError::NotBuilt(service.name())),
    }
}
