//! Gets the image configs that conversion asks for, all at once.

use std::collections::HashMap;

use frontend::request::{ImageRequest, ResolvedImage};
use futures::future::join_all;
use solver::op::Source;
use worker::source::resolve::{ImageError, Images};

/// The configs of `requests`, or what was wrong with each that could not be had.
pub(crate) async fn resolve(
    images: &Images,
    requests: &[ImageRequest],
) -> Result<HashMap<Source, ResolvedImage>, Vec<(ImageRequest, ImageError)>> {
    let answers = join_all(requests.iter().map(async |request| {
        images
            .find_source(&request.source)
            .await
            .map(|found| ResolvedImage { digest: found.digest(), config: found.config.clone() })
    }))
    .await;
    let mut resolved = HashMap::new();
    let mut failed = Vec::new();
    for (request, answer) in requests.iter().zip(answers) {
        match answer {
            Ok(image) => {
                resolved.insert(request.source.clone(), image);
            }
            Err(error) => failed.push((request.clone(), error)),
        }
    }
    if failed.is_empty() { Ok(resolved) } else { Err(failed) }
}
