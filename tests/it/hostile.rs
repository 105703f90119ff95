//! What a client cannot break: what arrives on the port and is no call, calls that make much of little, floods, peers that
//! neither send nor read, connections that end in every phase. The connection ends, or it is answered; the server and
//! its other clients are unharmed, and memory stays under a bound that follows from the limits.

mod amplification;
mod attack;
mod disconnect;
mod figures;
mod flood;
mod garbage;
mod slow;
