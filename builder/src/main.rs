//! `rbuild`: Dockerfiles to OCI images.
//!
//! Reading order: `cli` (what was typed), `request` (what it means), `commands`, `build` (one build, top to bottom).

mod agent;
mod attest;
mod build;
mod cache;
mod ci;
mod cli;
mod commands;
mod config;
mod context;
mod docker;
mod environment;
mod export;
mod failure;
mod journal;
mod named;
mod progress;
mod prompt;
mod registry;
mod remote;
mod request;
mod resolver;
mod sbom;
mod show;
mod sync;
mod timings;
mod trace;

use std::cell::OnceCell;
use std::process::ExitCode;

use ci::Ci;
use cli::{Command, ParseError};
use commands::Session;
use config::Config;
use environment::Places;
use failure::{Failure, OrFail as _};

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let uid = rustix::process::getuid().as_raw();
    let ci = Ci::of(variable);
    let configured =
        |config: Option<&std::path::Path>| Config::read(&Places::find(None, config, uid, variable));
    let result = match cli::parse(std::env::args_os(), configured) {
        Ok(cli) => configured(cli.config.as_deref()).and_then(|config| {
            let root = cli.root.clone().or_else(|| config.root.clone());
            let places = Places::find(root, cli.config.as_deref(), uid, variable);
            // Before a mount namespace is entered.
            let epoch = store::root::Epoch::at(&places.root).ok();
            // While there is one thread: later the kernel refuses. What needs no other ids than the user's own works
            // without.
            let no_steps = match &cli.command {
                Command::Completion(_) | Command::Man(_) => None,
                _ => worker::isolate::userns::enter().err().map(|obstacle| obstacle.to_string()),
            };
            let session = Session { places, config, epoch, no_steps, ci, opened: OnceCell::new() };
            let result = run(cli, &session);
            if let Some(root) = session.opened.get() {
                sync::start(root);
            }
            result
        }),
        // Help and version are errors to clap, with code 0.
        Err(ParseError::Clap(error)) => {
            let _ = error.print();
            if let Some(hint) = cli::hint(&error) {
                commands::eprint(&format!("{hint}\n"));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
        Err(ParseError::Failure(failure)) => Err(failure),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = failure.to_string();
            let place = failure.place.as_ref();
            if let Some(note) = place.and_then(|at| ci.annotation("error", at, "rbuild", &failure.message)) {
                text.push('\n');
                text.push_str(note.trim_end());
            }
            if !text.is_empty() {
                #[expect(clippy::print_stderr, reason = "the one place where a failed command speaks")]
                {
                    eprintln!("{text}");
                }
            }
            ExitCode::from(failure.class.exit_code())
        }
    }
}

fn run(cli: cli::Cli, session: &Session) -> Result<(), Failure> {
    match cli.command {
        Command::Build(args) => commands::build::build(session, *args),
        Command::Images(args) => commands::images::images(session, &args),
        Command::Rmi(args) => commands::images::rmi(session, &args),
        Command::Tag(args) => commands::images::tag(session, &args),
        Command::History(args) => commands::images::history(session, &args),
        Command::Inspect(args) => commands::images::inspect(session, &args),
        Command::Push(args) => commands::registry::push(session, &args),
        Command::Pull(args) => commands::registry::pull(session, &args),
        Command::Login(args) => commands::registry::login(session, &args),
        Command::Logout(args) => commands::registry::logout(session, &args),
        Command::Explain(args) => commands::explain::explain(session, &args),
        Command::Run(args) => commands::run::run(session, &args),
        Command::Cp(args) => commands::cp::cp(session, &args),
        Command::Save(args) => commands::archive::save(session, &args),
        Command::Load(args) => commands::archive::load(session, &args),
        Command::Du(args) => commands::housekeeping::du(session, &args),
        Command::Prune(args) => commands::housekeeping::prune(session, &args),
        Command::Doctor(args) => commands::doctor::doctor(session, &args),
        Command::Verify(args) => commands::verify::verify(session, *args),
        Command::Builds(args) => commands::builds::builds(session, &args),
        Command::Logs(args) => commands::builds::logs(session, &args),
        Command::Shell(args) => commands::shell::shell(session, *args),
        Command::Index(args) => commands::index::index(session, &args),
        Command::Man(args) => cli::docs::man_pages(&args.dir).or_fail(failure::Class::Usage),
        Command::Completion(args) => commands::completion(&args),
        Command::InternalSync(args) => sync::run(&session.places.root, &args.epoch),
    }
}
