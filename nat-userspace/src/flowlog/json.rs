//! Records as JSON lines.

use serde::Serialize;

/// Appends one line.
pub(super) fn line(record: &impl Serialize, buffer: &mut Vec<u8>) {
    let before = buffer.len();
    if serde_json::to_writer(&mut *buffer, record).is_err() {
        // Nothing in a record can fail, and half a line would spoil the next one.
        buffer.truncate(before);
        return;
    }
    buffer.push(b'\n');
}
