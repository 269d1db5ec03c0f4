//! `rbuild shell --before|--after STEP`: builds what a step stands on, or the step too, and opens its sandbox.

use std::rc::Rc;

use frontend::request::Converted;
use solver::cancel::Cancel;
use solver::driver::{self, Root as Wanted};
use solver::op::{self, Op};
use solver::runner::{InputRef, Job};
use solver::{Definition, VertexId};
use worker::Worker;
use worker::sandbox::Moment;
use worker::source::resolve::Images;

use super::Build;
use super::stopped::Stopped;
use crate::build::NamedContexts;
use crate::cache::session::BuildCache;
use crate::commands::shell;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::request::{Look, When};

impl Build<'_> {
    /// Opens a sandbox and waits for its shell to end. `show` is over before that.
    pub(super) async fn look(
        &self,
        look: &Look,
        converted: &Converted,
        contexts: &NamedContexts,
        images: &Rc<Images>,
        cancel: &Cancel,
        progress: Progress,
    ) -> Result<u8, Stopped> {
        let definition = &converted.definition;
        let id = find(definition, &look.step)?;
        let vertex = definition.vertex(id);
        let standing = match &vertex.op {
            Op::Exec(exec) => exec.clone(),
            _ => exec_of(converted),
        };
        if matches!(vertex.op, Op::Source(op::Source::Local { .. })) {
            let message = format!("the step {:?} is a directory of this host", vertex.metadata.name);
            return Err(Failure::usage(message).into());
        }
        let is_exec = matches!(vertex.op, Op::Exec(_));
        let mut wanted: Vec<Wanted> =
            vertex.inputs.iter().map(|input| Wanted { vertex: input.vertex, want_files: true }).collect();
        let root = match (look.when, is_exec, &vertex.op) {
            (When::After, ..) => Some(id),
            (When::Before, true, _) => None,
            (When::Before, false, Op::File(op::File { base: Some(base), .. })) => {
                Some(vertex.inputs[*base].vertex)
            }
            (When::Before, ..) => {
                let message = format!("there is nothing before the step {:?}", vertex.metadata.name);
                return Err(Failure::usage(message).into());
            }
        };
        wanted.extend(root.map(|vertex| Wanted { vertex, want_files: true }));
        let show = progress.handle().definition(definition, &wanted);
        let events = Rc::new(show);
        let imports = Rc::new(self.imports(progress.handle()));
        let worker = Worker::new(
            self.root.clone(),
            self.options(contexts, Some(&imports))?,
            images.clone(),
            events.clone(),
        );
        let cache = BuildCache::new(self.root, imports, self.request.cache_ttl, false);
        let options = self.driver_options(converted, cancel);
        let solved = driver::solve(definition, &wanted, &worker, &cache, &*events, &options).await;
        drop(events);
        let _report = progress.finish();
        let mut solved = solved.map_err(|error| self.stopped(converted, error, &worker, None))?;
        let root = root.and_then(|_| solved.pop()).and_then(|solved| solved.snapshot);

        let job = Job { id, vertex, cancel: cancel.clone() };
        let inputs: Vec<InputRef<'_>> = vertex
            .inputs
            .iter()
            .zip(solved)
            .map(|(input, solved)| InputRef {
                id: input.vertex,
                vertex: definition.vertex(input.vertex),
                result: solved.result,
                snapshot: solved.snapshot,
            })
            .collect();
        let moment = root.map_or(Moment::Before, Moment::After);
        let prepared = worker.sandbox_at(moment, &job, &inputs, &standing, &look.command).await;
        let prepared = prepared.map_err(|error| Failure::from_worker(&error))?;
        Ok(shell::enter(prepared).await?)
    }

    /// `--on-error=shell`: a shell in the sandbox of the step that failed, which goes with it.
    pub(super) async fn shell_in_failed(&self) -> Result<(), Failure> {
        let Some(directory) = self.kept.take() else { return Ok(()) };
        let id = directory.id();
        let images = Rc::new(Images::new(self.root.clone(), self.client.clone(), Default::default()));
        let options = self.options(&NamedContexts::default(), None)?;
        let worker = Worker::new(self.root.clone(), options, images, Rc::new(|_| {}));
        let opened = worker.open_sandbox(directory, &[]).await;
        let result = match opened {
            Ok(prepared) => shell::enter(prepared).await.map(drop),
            Err(error) => Err(shell::refused(&error)),
        };
        if let Some(directory) = self.root.directories().reopen(id)? {
            self.root.directories().remove(directory)?;
        }
        result
    }
}

/// The one step that is meant.
fn find(definition: &Definition, step: &str) -> Result<VertexId, Failure> {
    let name = |id: &VertexId| definition.vertex(*id).metadata.name.as_str();
    let number = step.trim_start_matches('#').parse::<usize>().ok();
    let found: Vec<VertexId> = definition
        .ids()
        .filter(|id| match number {
            Some(number) => id.index() + 1 == number,
            None => name(id).contains(step),
        })
        .collect();
    let list = |ids: &[VertexId]| {
        ids.iter().map(|id| format!("\n  {} {}", id.index() + 1, name(id))).collect::<String>()
    };
    Err(Failure::usage(match found[..] {
        [one] => return Ok(one),
        [] => {
            let all: Vec<VertexId> = definition.ids().collect();
            format!("there is no step {step:?}; there are{}", list(&all))
        }
        _ => format!("{step:?} is in the name of more than one step: give a number{}", list(&found)),
    }))
}

/// What stands for a step that runs nothing: the environment of the image.
fn exec_of(converted: &Converted) -> op::Exec {
    let config = &converted.config.config;
    op::Exec {
        env: config.env.clone(),
        cwd: config.working_dir.clone(),
        user: config.user.clone(),
        ..op::Exec::new(Vec::new(), converted.platform.clone())
    }
}
