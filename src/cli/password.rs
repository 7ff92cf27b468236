//! `postern hash-password`: what a local user's password is kept as.
use std::process::ExitCode;

use argon2::{Argon2, PasswordHasher};
use secrecy::{ExposeSecret, SecretString};

use super::{failed, println};

/// Reads the password from standard input.
pub fn hash() -> ExitCode {
    let mut line = String::new();
    if let Err(error) = std::io::stdin().read_line(&mut line) {
        return failed(&format!("password cannot be read from standard input: {error}"));
    }
    let password = SecretString::from(line.trim_end_matches(['\r', '\n']).to_owned());
    if password.expose_secret().is_empty() {
        return failed(
            "give the password on standard input, for example: printf %s \"$PASSWORD\" | postern hash-password",
        );
    }
    match Argon2::default().hash_password(password.expose_secret().as_bytes()) {
        Ok(hash) => println(&hash.to_string()),
        Err(error) => failed(&error.to_string()),
    }
}
