//! `rbuild explain`: what the last build took from the cache, and why it did not take the rest.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use solver::Definition;
use solver::event::Event;
use store::root::Root;

use super::{Session, print};
use crate::cli::ExplainArgs;
use crate::export::file;
use crate::failure::{Class, Failure, OrFail as _};

/// What was decided about a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Decision {
    step: String,
    /// Why it ran; `None` if it was in the cache.
    missed: Option<String>,
}

/// Notes what a build decides.
#[derive(Clone, Debug)]
pub(crate) struct Decisions {
    names: Rc<Vec<String>>,
    made: Rc<RefCell<Vec<Decision>>>,
}

impl Decisions {
    pub(crate) fn new(definition: &Definition) -> Self {
        let names = definition.ids().map(|id| definition.vertex(id).metadata.name.clone()).collect();
        Self { names: Rc::new(names), made: Rc::default() }
    }

    pub(crate) fn note(&self, event: &Event) {
        let (vertex, missed) = match event {
            Event::Cached(vertex) => (vertex, None),
            Event::Missed(vertex, why) => (vertex, Some(why.clone())),
            _ => return,
        };
        self.made.borrow_mut().push(Decision { step: self.names[vertex.index()].clone(), missed });
    }

    /// Keeps them for `rbuild explain`. Nothing depends on it.
    pub(crate) fn keep(&self, root: &Root) {
        let json = serde_json::to_vec(&*self.made.borrow()).expect("plain data");
        let path = root.path().join("last-build.json");
        if std::fs::read(&path).is_ok_and(|known| known == json) {
            return;
        }
        // ext4 writes a file to disk that replaces another, and the build would wait for it.
        let _not_there = std::fs::remove_file(&path);
        let _not_needed = file::write(&path, &json);
    }
}

/// `rbuild explain`
pub(crate) fn explain(session: &Session, args: &ExplainArgs) -> Result<(), Failure> {
    print_last(&session.open()?, args.step.as_deref())
}

/// Prints what the last build decided, of steps whose name has `filter` in it.
pub(crate) fn print_last(root: &Root, filter: Option<&str>) -> Result<(), Failure> {
    let path = root.path().join("last-build.json");
    let bytes =
        std::fs::read(&path).map_err(|_| Failure::usage("there was no build in this state directory yet"))?;
    let decisions: Vec<Decision> = serde_json::from_slice(&bytes).or_fail(Class::Internal)?;
    let shown =
        decisions.iter().filter(|decision| filter.is_none_or(|filter| decision.step.contains(filter)));
    print(|out| {
        for Decision { step, missed } in shown {
            match missed {
                None => writeln!(out, "CACHED  {step}")?,
                Some(why) => writeln!(out, "RAN     {step}\n        {why}")?,
            }
        }
        Ok(())
    })
}
