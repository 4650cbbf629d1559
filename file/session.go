package file

import (
	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/wire"
)

// sessions are the sessions in use, and the index of leases by session.
type sessions struct{}

func (m *Machine) loadSessions() error { return nil }

// beginCommand says what is to be done with a command of a session: nil to
// apply it, else its answer.
func (m *Machine) beginCommand(c *context, cmd *wire.Command) *wire.Answer { return nil }

// endCommand keeps a command's answer for a retry.
func (m *Machine) endCommand(c *context, cmd *wire.Command, answer *wire.Answer) {}

// sweepSessions forgets sessions that were closed long enough ago, a bounded
// number per entry.
func (m *Machine) sweepSessions() {}

// flushSessions puts dirty session rows into the open batch.
func (m *Machine) flushSessions() {}

func (m *Machine) applyEndSession(c *context, cmd *wire.Command, op *wire.EndSession) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}
