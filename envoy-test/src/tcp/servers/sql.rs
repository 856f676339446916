//! What clients of SQL servers say.

use super::{Dialogue, LARGE, LONG, value};

/// A client that writes once, and reads it back.
pub(super) fn short(mut client: Dialogue, space: &str, number: usize) -> Vec<Dialogue> {
    write_and_read(&mut client, space, number, 20);
    vec![client]
}

/// What goes before all connections, and the long one. `text` is the type of a large text.
pub(super) fn long(
    client: impl Fn() -> Dialogue,
    space: &str,
    text: &str,
) -> (Vec<Dialogue>, Vec<Dialogue>) {
    let mut first = client();
    first.says(&format!(
        "CREATE TABLE {space} (k INT PRIMARY KEY, v {text});"
    ));
    let mut long = client();
    for number in 0..LONG {
        write_and_read(&mut long, space, 1000 + number, number);
    }
    write_and_read(&mut long, space, 1000 + LONG, LARGE);
    (vec![first], vec![long])
}

fn write_and_read(client: &mut Dialogue, space: &str, number: usize, length: usize) {
    let value = value(space, number, length);
    client.says(&format!(
        "INSERT INTO {space} VALUES ({number}, '{value}');"
    ));
    client.says(&format!("SELECT v FROM {space} WHERE k = {number};"));
    client.hears(&value);
}
