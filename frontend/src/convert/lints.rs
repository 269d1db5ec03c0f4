//! The warnings that only conversion can give: they need values of variables, configs or the ignore file.

use std::collections::BTreeSet;

use image::tree::Patterns;
use image::{Platform, Reference};

use crate::ast::Span;
use crate::diagnostic::Diagnostic;
use crate::expand::{self, Expanded};
use crate::lint::rules;
use crate::stages::Stage;
use crate::suggest;

use super::args::Args;
use super::env::{NOT_IN_ENV, Variables};
use super::path;

/// FROM uses ARGs that nothing declares.
pub(super) fn undefined_arg_in_from(
    unmatched: &BTreeSet<String>,
    args: &Args,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    for name in unmatched.iter().filter(|name| !args.declared.contains_key(*name)) {
        let options = args.globals.names().chain(args.declared.keys().map(String::as_str));
        warnings.push(rules::undefined_arg_in_from(span, name, suggest::nearest(name, options)));
    }
}

/// Without `--build-arg`s the image's name would be no name.
pub(super) fn default_arg_in_from(
    stage: &Stage<'_>,
    args: &Args,
    escape: char,
    warnings: &mut Vec<Diagnostic>,
) {
    let written = &stage.from.image.value;
    if !written.contains('$') {
        return;
    }
    let Some(defaults) = &args.defaults else { return };
    let Ok(expanded) = expand::expand_word(written, escape, defaults) else { return };
    if expanded.text.parse::<Reference>().is_err() {
        warnings.push(rules::invalid_default_arg_in_from(stage.instruction.span, written));
    }
}

/// `FROM --platform=$TARGETPLATFORM` says what is so anyway.
pub(super) fn target_platform(
    stage: &Stage<'_>,
    written: &str,
    expanded: &Expanded,
    args: &Args,
    warnings: &mut Vec<Diagnostic>,
) {
    let only = expanded.used.len() == 1 && expanded.unmatched.is_empty();
    if only
        && expanded.used.contains("TARGETPLATFORM")
        && args.global("TARGETPLATFORM") == Some(&expanded.text)
    {
        warnings.push(rules::redundant_target_platform(stage.instruction.span, written));
    }
}

/// Variables that nothing sets.
pub(super) fn undefined_variables<'a>(
    names: impl Iterator<Item = &'a String>,
    variables: &Variables,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    for name in names.filter(|name| !NOT_IN_ENV.contains(&name.as_str())) {
        // Looking for near names costs their number: not for every line of a generated file.
        let near = if warnings.len() < MOST_SUGGESTIONS {
            suggest::nearest(name, variables.names().take(MOST_NAMES))
        } else {
            None
        };
        warnings.push(rules::undefined_var(span, name, near));
    }
}

/// The base image is for another platform.
pub(super) fn base_image_platform(
    name: &str,
    expected: &Platform,
    actual: &Platform,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        warnings.push(rules::invalid_base_image_platform(span, name, &expected, &actual));
    }
}

/// A source of COPY or ADD that the ignore file keeps out.
pub(super) fn ignored_file(
    keyword: &str,
    written: &str,
    ignore: &Patterns,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) {
    let source = path::clean(written);
    // The context's root is no file of its own.
    if ignore.is_empty() || source == "." || source == "/" {
        return;
    }
    if ignore.matching(source.trim_start_matches('/').as_bytes()).is_some() {
        warnings.push(rules::copy_ignored_file(span, keyword, &source));
    }
}

/// After so many findings no more names are looked for.
const MOST_SUGGESTIONS: usize = 100;
/// How many names are looked at.
const MOST_NAMES: usize = 1000;
