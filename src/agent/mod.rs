//! (this room's one-line doc)
