//! Many commands at once on one state directory.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tests::{Base, Outcome, TestEnv};

#[test]
fn builds_are_right_while_others_build_and_prune() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let _ = env.rbuild(["prune", "--all", "--force"]).ok();
                rounds += 1;
            }
            rounds
        });
        let builders: Vec<_> = (0..3)
            .map(|builder| {
                let env = &env;
                scope.spawn(move || {
                    for round in 0..5 {
                        // Some steps are everybody's, some are one builder's.
                        let dockerfile = format!(
                            "FROM busybox:1 AS shared\nRUN echo shared {round} > /shared\n\
                             FROM busybox:1\nCOPY --from=shared /shared /\nRUN echo {builder} | cat /shared - > /out\n"
                        );
                        let context = env.context(&format!("c{builder}"), &[("Dockerfile", &dockerfile)]);
                        let tar = env.work().join(format!("{builder}.tar"));
                        let output = format!("type=tar,dest={}", tar.display());
                        let args = ["build".as_ref(), "-o".as_ref(), output.as_ref(), context.as_os_str()];
                        let _ = env.rbuild(args).ok();
                        let out = Outcome::of(Command::new("tar").arg("-xOf").arg(tar).arg("out")).ok();
                        assert_eq!(out.stdout, format!("shared {round}\n{builder}\n"));
                    }
                })
            })
            .collect();
        let results: Vec<_> = builders.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        let rounds: u32 = pruning.join().expect("pruning works");
        for result in results {
            result.expect("all builds are right");
        }
        assert!(rounds > 1);
    });
}
