//! Puts an image together: the config with its layers and times, and the manifest. Pure: bytes and values only.

use std::collections::BTreeMap;

use image::config::History;
use image::manifest::media_type;
use image::{Descriptor, ImageConfig, Manifest};
use solver::record::SnapshotLayer;

use crate::show::{parse_rfc3339, rfc3339};

/// Fills in what conversion could not know: the layers' diff IDs and when each step was made.
///
/// A step with a layer was made when its layer was; one without, when the one before it was. So a build from the cache
/// has the config of the build that filled the cache. `now` counts only where nothing has a time. With an `epoch`
/// (`SOURCE_DATE_EPOCH`) that is the time of every step, wherever its layer comes from; the base's history stays.
pub(crate) fn finish_config(
    mut config: ImageConfig,
    base_history: usize,
    layers: &[SnapshotLayer],
    epoch: Option<i64>,
    now: i64,
) -> ImageConfig {
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
    let has_layer = |entry: &&History| !entry.empty_layer;
    // Not counted in the base's history, which may be shorter than its layers are many.
    let own = config.history.iter().skip(base_history).filter(has_layer).count();
    let below = layers.len().saturating_sub(own);
    let mut made = layers.iter().skip(below).map(|layer| layer.created);
    let base_time = config.history.iter().take(base_history).rev().find_map(|entry| entry.created.clone());
    let base_time = base_time.or_else(|| config.created.clone()).and_then(|text| parse_rfc3339(&text));
    let first_step = layers.iter().skip(below).find_map(|layer| layer.created);
    let mut time = base_time.or(first_step).unwrap_or(now);
    for entry in config.history.iter_mut().skip(base_history) {
        if !entry.empty_layer {
            time = made.next().flatten().unwrap_or(time);
        }
        entry.created = Some(rfc3339(time));
    }
    if let Some(epoch) = epoch {
        for entry in config.history.iter_mut().skip(base_history) {
            entry.created = Some(rfc3339(epoch));
        }
    }
    config.created = config.history.last().and_then(|entry| entry.created.clone()).or_else(|| {
        let time = epoch.map_or(time, |epoch| time.min(epoch));
        Some(rfc3339(time))
    });
    config
}

/// The manifest of an image, as bytes with two-space indentation like BuildKit's.
pub(crate) fn manifest(
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
    oci: bool,
) -> Vec<u8> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: if oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST }.to_owned(),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations,
    };
    serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only and no failing serialisers")
}

/// The media type of a config.
pub(crate) fn config_type(oci: bool) -> &'static str {
    if oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG }
}

#[cfg(test)]
mod tests {
    use image::{DiffId, Digest};

    use super::*;

    fn layer(n: u8, created: Option<i64>) -> SnapshotLayer {
        SnapshotLayer { diff_id: DiffId(Digest::of(&[n])), created }
    }

    fn config(history: &[(Option<&str>, bool)]) -> ImageConfig {
        let history = history
            .iter()
            .map(|(created, empty_layer)| History {
                created: created.map(str::to_owned),
                empty_layer: *empty_layer,
                ..History::default()
            })
            .collect();
        ImageConfig { history, ..ImageConfig::default() }
    }

    fn times(config: &ImageConfig) -> Vec<Option<i64>> {
        config.history.iter().map(|entry| entry.created.as_deref().and_then(parse_rfc3339)).collect()
    }

    #[test]
    fn steps_have_their_layers_times_whenever_the_image_is_made() {
        let base = Some("2020-09-13T12:26:40Z");
        let config = config(&[(base, false), (None, true), (None, false), (None, true)]);
        let layers = [layer(1, None), layer(2, Some(1_700_000_000))];
        let finish = |now| finish_config(config.clone(), 1, &layers, None, now);
        let done = finish(9);
        let step = Some(1_700_000_000);
        assert_eq!(times(&done), [Some(1_600_000_000), Some(1_600_000_000), step, step]);
        assert_eq!(done.created.as_deref().and_then(parse_rfc3339), step);
        assert_eq!(done.rootfs.diff_ids.len(), 2);
        assert_eq!(done, finish(10));
    }

    #[test]
    fn an_epoch_is_the_time_of_all_steps_but_the_base_s() {
        let base = Some("2020-09-13T12:26:40Z");
        let config = config(&[(base, false), (None, false), (None, true)]);
        for made in [1_700_000_000, 5] {
            let layers = [layer(1, None), layer(2, Some(made))];
            let done = finish_config(config.clone(), 1, &layers, Some(1_650_000_000), 9);
            assert_eq!(times(&done), [Some(1_600_000_000), Some(1_650_000_000), Some(1_650_000_000)]);
            assert_eq!(done.created.as_deref().and_then(parse_rfc3339), Some(1_650_000_000));
        }
    }

    #[test]
    fn an_image_of_nothing_is_as_old_as_the_build() {
        let done = finish_config(config(&[(None, true)]), 0, &[], None, 7);
        assert_eq!(times(&done), [Some(7)]);
    }
}
