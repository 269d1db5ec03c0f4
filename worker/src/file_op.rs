//! File ops of a build: the inputs are gathered, the layer is written on the CPU pool and stored.

use std::sync::Arc;
use std::time::Instant;

use image::DiffId;
use solver::cancel::Cancel;
use solver::op::{self, FileAction};
use solver::runner::{InputRef, Job, Outcome, Task};
use store::layer::Stored;
use store::pool;
use store::root::now;
use store::timing::{self, Of};

use crate::error::WorkerError;
use crate::file::{self, Earlier, Input};
use crate::worker::{Context, Worker, diff_ids};

impl Worker {
    /// Applies `op` and stores the layer it makes.
    pub(crate) async fn run_file(
        &self,
        job: &Job<'_>,
        task: &Task<'_>,
        op: &op::File,
    ) -> Result<Outcome, WorkerError> {
        let started = Instant::now();
        let _phase = timing::phase("write", Of::Step(job.id.index()));
        let mut inputs = Vec::with_capacity(task.inputs.len());
        for (index, input) in task.inputs.iter().enumerate() {
            inputs.push(self.file_input(job, index, input).await?);
        }
        let stored = self.write_layer(op.clone(), inputs, task.earlier, job.cancel.clone()).await?;
        Ok(Outcome {
            layer: stored.diff_id,
            content: stored.index.content(),
            seconds: started.elapsed().as_secs_f64(),
            bytes: stored.size,
            created: now(),
        })
    }

    /// An input of a file op, or of a mount that is copied.
    pub(crate) async fn file_input(
        &self,
        job: &Job<'_>,
        index: usize,
        input: &InputRef<'_>,
    ) -> Result<Input, WorkerError> {
        if let Some(snapshot) = &input.snapshot {
            return Ok(Input { tree: self.tree(&diff_ids(snapshot))?, directory: None });
        }
        let selector =
            job.vertex.inputs[index].selector.as_ref().expect("local sources are read by selectors");
        let context = self.context(input, selector, &job.cancel).await?;
        Ok(Input { tree: context.walked.tree.clone(), directory: Some(context.directory.clone()) })
    }

    /// What was picked of a local source, as a layer of its own.
    pub(crate) async fn layer_of(
        &self,
        context: Arc<Context>,
        cancel: &Cancel,
    ) -> Result<DiffId, WorkerError> {
        let input = Input { tree: context.walked.tree.clone(), directory: Some(context.directory.clone()) };
        let layer = self.copied(input, cancel).await?;
        self.note_file_layer(layer);
        Ok(layer)
    }

    /// One layer that shows what `layers` show over each other.
    pub(crate) async fn flatten(&self, layers: &[DiffId]) -> Result<DiffId, WorkerError> {
        self.copied(Input { tree: self.tree(layers)?, directory: None }, &Cancel::new()).await
    }

    /// All of `input` as a layer.
    async fn copied(&self, input: Input, cancel: &Cancel) -> Result<DiffId, WorkerError> {
        let op = op::File { base: None, actions: vec![FileAction::Copy(op::Copy::all(0, "/"))] };
        Ok(self.write_layer(op, vec![input], None, cancel.clone()).await?.diff_id)
    }

    async fn write_layer(
        &self,
        op: op::File,
        inputs: Vec<Input>,
        earlier: Option<DiffId>,
        cancel: Cancel,
    ) -> Result<Stored, WorkerError> {
        let root = self.root().clone();
        let options = file::Options { created: now(), temporary: root.temp_dir()?.to_owned(), earlier: None };
        pool::spawn(move || -> Result<Stored, WorkerError> {
            let open_tar = |layer: &DiffId| root.layers().open_tar(layer);
            let earlier = earlier.and_then(|layer| Earlier::open(&root.layers(), &layer));
            let options = file::Options { earlier, ..options };
            let new = root.layers().create()?;
            let (new, index) = file::run(&op, &inputs, &open_tar, &options, &cancel, new)?;
            Ok(new.commit(index)?)
        })
        .await?
    }
}
