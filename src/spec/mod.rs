//! What the user wrote (YAML or flags), turned once into a validated [`plan::MachinePlan`].

pub mod plan;
