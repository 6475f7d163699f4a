//! What the events of panzer's epoll instance are about.

use rustix::event::epoll;

use super::sys::Pid;

/// What an epoll event is about. The kernel keeps it as one number: a child's is its pid, and no pid is 0 or negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// A signal has come.
    Signals,
    /// The guard is gone.
    Guard,
    /// Workers bind something, or something else has happened around shared ports.
    Ports,
    /// Clients of the control socket.
    Control,
    /// The child that serves metrics asks for the status, or is gone.
    Metrics,
    /// The machine's power button.
    Power,
    /// A child has executed its program, or says why not.
    Child(Pid),
    /// A worker tells something of itself.
    Feedback(Pid),
}

/// What tells feedback from a start, beside the pid.
const FEEDBACK: u64 = 1 << 32;

impl Token {
    /// As the kernel keeps it.
    pub(super) fn to_data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Signals => 0,
            Self::Guard => u64::MAX,
            Self::Ports => u64::MAX - 1,
            Self::Control => u64::MAX - 2,
            Self::Metrics => u64::MAX - 3,
            Self::Power => u64::MAX - 4,
            Self::Child(pid) => pid.number().unsigned_abs().into(),
            Self::Feedback(pid) => FEEDBACK | u64::from(pid.number().unsigned_abs()),
        })
    }

    /// The same read back.
    pub(super) fn from_data(data: epoll::EventData) -> Self {
        match data.u64() {
            0 => Self::Signals,
            number if number == u64::MAX - 1 => Self::Ports,
            number if number == u64::MAX - 2 => Self::Control,
            number if number == u64::MAX - 3 => Self::Metrics,
            number if number == u64::MAX - 4 => Self::Power,
            number => {
                let pid = i32::try_from(number & !FEEDBACK).ok().and_then(Pid::from_number);
                let of_child = if number & FEEDBACK == 0 { Self::Child } else { Self::Feedback };
                pid.map_or(Self::Guard, of_child)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_as_they_were_written() {
        let pid = Pid::from_number(i32::MAX).unwrap();
        for token in [
            Token::Signals,
            Token::Guard,
            Token::Ports,
            Token::Control,
            Token::Metrics,
            Token::Power,
            Token::Child(pid),
            Token::Feedback(pid),
        ] {
            assert_eq!(Token::from_data(token.to_data()), token);
        }
    }
}
