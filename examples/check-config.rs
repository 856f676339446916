//! Checks a plugin configuration as the filter does at configure:
//! `make check-config FILE=config.json`. Exits with 1 if it is refused.

use std::process::ExitCode;

use metadata_exchange::config::Config;

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1) else {
        eprintln!("usage: check-config FILE");
        return ExitCode::from(2);
    };
    let name = file.display();
    let json = match std::fs::read(&file) {
        Ok(json) => json,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::from(2);
        }
    };
    match Config::parse(&json) {
        Ok(config) => {
            println!("{name}: ok\n{config:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
