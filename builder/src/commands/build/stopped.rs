//! Why a build failed, with what the Dockerfile has to do with it.

use frontend::request::Converted;
use solver::driver::SolveError;
use solver::{Definition, VertexId};
use worker::Worker;
use worker::error::WorkerError;
use worker::file::FileError;

use super::Build;
use crate::commands::shell;
use crate::failure::{Class, Failure};
use crate::journal::Listener;
use crate::request::OnError;

/// Why a build failed, before it is known what the display has shown of it.
pub(super) enum Stopped {
    /// Say this.
    Failure(Failure),
    /// A step failed: this, and what stands in the Dockerfile.
    Step { failure: Failure, excerpt: String },
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Build<'_> {
    pub(super) fn stopped(
        &self,
        converted: &Converted,
        error: SolveError<WorkerError>,
        worker: &Worker,
        listener: Option<&Listener>,
    ) -> Stopped {
        match error {
            SolveError::Vertex { vertex, source, .. } => {
                let metadata = &converted.definition.vertex(vertex).metadata;
                let span = metadata.span.or_else(|| asked_for(&converted.definition, vertex, &source));
                let excerpt = span.map(|span| self.parsed.excerpt(span)).unwrap_or_default();
                let mut failure = Failure::from_worker(&source).at(span.map(|span| self.parsed.place(span)));
                if let (Class::Step, Some(listener)) = (failure.class, listener) {
                    let number = listener.number(vertex);
                    failure =
                        failure.hint(format!("`rbuild logs {} {number}` shows all that it said", self.id));
                }
                let kept = worker.take_kept();
                if let Some(Err(error)) = &kept {
                    failure = failure.hint(format!("its sandbox could not be kept: {error}"));
                }
                if let Some(Ok(directory)) = kept {
                    if self.request.on_error == OnError::Keep {
                        let id = shell::name(&directory.id());
                        failure = failure.hint(format!("`rbuild shell {id}` opens a shell in its sandbox"));
                    }
                    *self.kept.borrow_mut() = Some(directory);
                }
                if let Some(pattern) = ignored_by(&source)
                    && let Some((line, _)) = self.context.ignore.iter().rev().find(|(_, own)| own == pattern)
                {
                    let file = &self.context.ignore_file;
                    failure = failure.hint(format!("excluded by {file} line {line}: {pattern}"));
                }
                if let (WorkerError::Image(_), solver::Op::Source(image)) =
                    (&source, &converted.definition.vertex(vertex).op)
                    && let Some(hint) = self.parsed.near_stage(image)
                {
                    failure = failure.hint(hint);
                }
                Stopped::Step { failure, excerpt }
            }
            SolveError::Cancelled => Failure::new(Class::Cancelled, "cancelled").into(),
            other => Failure::of(Class::Dockerfile, &other).into(),
        }
    }
}

/// The ignore pattern that hides what a step wants to copy.
fn ignored_by(error: &WorkerError) -> Option<&str> {
    match error {
        WorkerError::File(FileError::Missing { missing, .. }) => missing.ignored_by.as_deref(),
        _ => None,
    }
}

/// Where the Dockerfile asks for the file that `error` misses in `context`, which itself stands nowhere in it.
fn asked_for(definition: &Definition, context: VertexId, error: &WorkerError) -> Option<(usize, usize)> {
    let WorkerError::File(FileError::Missing { path, .. }) = error else { return None };
    let names = |user: &VertexId| {
        let inputs = definition.vertex(*user).inputs.iter().filter(|input| input.vertex == context);
        let mut picks =
            inputs.filter_map(|input| input.selector.as_ref()).flat_map(|selector| &selector.picks);
        picks.any(|pick| pick.path == *path)
    };
    definition.users(context).filter(names).find_map(|user| definition.vertex(user).metadata.span)
}
