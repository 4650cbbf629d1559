package file

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	// sessionsMax bounds the session rows in memory.
	sessionsMax = 16 << 10
	// answersMax bounds the answers that a session has not confirmed, and the
	// puts that it has blocked.
	answersMax = 16 << 10
	// sweepMax bounds how many closed sessions one entry forgets.
	sweepMax = 64
)

// sessions are the sessions in use and what is known about all of them. All
// but the rows is rebuilt from the tables when the Machine begins.
type sessions struct {
	rows   cache[gearsfs.SessionID, *session]
	dirty  []*session
	closed []closedSession // in order; some have been opened again since
	leases leases
	pins   pins
	taken  []stream.Taken // scratch
}

// session is a session in use. A session without a row is not kept.
type session struct {
	id        gearsfs.SessionID
	row       wire.SessionRow
	dirty     bool // in sessions.dirty
	forgotten bool // its row is to be deleted
}

// closedSession is due to be forgotten SessionTTL after at.
type closedSession struct {
	at uint64
	id gearsfs.SessionID
}

func (a closedSession) compare(b closedSession) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.id.Minted, b.id.Minted), cmp.Compare(a.id.Salt, b.id.Salt))
}

// loadSessions rebuilds what is known about all sessions.
func (m *Machine) loadSessions() error {
	m.sessions.rows.init(sessionsMax)
	m.sessions.leases = make(leases)
	m.sessions.pins = make(pins)
	err := scanSessions(m.store, func(id gearsfs.SessionID, row *wire.SessionRow) {
		if row.Closed != 0 {
			m.sessions.closed = append(m.sessions.closed, closedSession{row.Closed, id})
		}
		for _, a := range row.Answers {
			m.pinAnswer(id, a)
		}
	})
	if err != nil {
		return err
	}
	slices.SortFunc(m.sessions.closed, closedSession.compare)
	return m.loadLeases()
}

// session returns a session that has a row, or has been given one in the open
// batch; nil where there is none.
func (m *Machine) session(id gearsfs.SessionID) (*session, error) {
	if s, ok := m.sessions.rows.get(id); ok {
		if s.forgotten {
			return nil, nil
		}
		return s, nil
	}
	m.scratch.key = persist.AppendSessionKey(m.scratch.key[:0], id)
	value, ok, err := m.get(m.scratch.key)
	if err != nil || !ok {
		return nil, err
	}
	s := &session{id: id}
	if err := s.row.UnmarshalVT(value); err != nil {
		return nil, damaged("session", err)
	}
	m.sessions.rows.put(id, s)
	return s, nil
}

// openSession returns the session of a command that is recognised when it is
// retried, making its row where there is none.
func (m *Machine) openSession(c *context, cmd *wire.Command) (*session, error) {
	s, err := m.session(c.session)
	if err != nil {
		return nil, err
	}
	if s == nil {
		if old, ok := m.sessions.rows.get(c.session); ok { // forgotten in this entry
			s = old
			s.forgotten = false
			s.row.Reset()
		} else {
			s = &session{id: c.session}
			m.sessions.rows.put(s.id, s)
		}
		s.row.Confirmed, s.row.Unconfirmed = cmd.Confirmed, slices.Clone(cmd.Unconfirmed)
	}
	m.dirtySession(s)
	return s, nil
}

func (m *Machine) dirtySession(s *session) {
	if !s.dirty {
		s.dirty = true
		m.sessions.dirty = append(m.sessions.dirty, s)
	}
}

// recognised reports whether a retry of a command is told from a new one.
func recognised(c *context, cmd *wire.Command) bool { return cmd.Seq != 0 && !c.session.IsZero() }

// beginCommand says what is to be done with a command of a session: nil to
// apply it, else its answer.
func (m *Machine) beginCommand(c *context, cmd *wire.Command) *wire.Answer {
	if !recognised(c, cmd) {
		return nil
	}
	s, err := m.session(c.session)
	if err != nil {
		return m.refuse(err)
	}
	if s == nil {
		if c.session.Minted < int64(m.ago(uint64(gearsfs.SessionTTL))) {
			return m.refuse(gearsfs.ErrSession.Because("the session is unknown and older than %v", gearsfs.SessionTTL))
		}
		return nil
	}
	if cmd.Confirmed > s.row.Confirmed {
		if err := m.confirm(s, cmd.Confirmed, cmd.Unconfirmed); err != nil {
			return m.refuse(err)
		}
	}
	if isConfirmed(&s.row, cmd.Seq) {
		return m.refuse(gearsfs.ErrSession.Because("command %d was confirmed before", cmd.Seq))
	}
	i, known := findAnswer(&s.row, cmd.Seq)
	if known {
		answer, err := m.answerAgain(c, cmd, s.row.Answers[i])
		if err != nil {
			return m.refuse(err)
		}
		if answer != nil {
			return answer
		}
		s.row.Answers = slices.Delete(s.row.Answers, i, i+1)
		m.dirtySession(s)
	}
	if len(s.row.Answers) >= answersMax || len(s.row.Blocked) >= answersMax {
		return m.refuse(gearsfs.ErrOverload.Because("%d commands of the session are not confirmed", answersMax))
	}
	return nil
}

// findAnswer returns where the answer of command seq is, or would be.
func findAnswer(row *wire.SessionRow, seq uint64) (i int, ok bool) {
	n := len(row.Answers)
	if n == 0 || row.Answers[n-1].Seq < seq { // as it mostly is
		return n, false
	}
	return slices.BinarySearchFunc(row.Answers, seq, func(a *wire.StoredAnswer, seq uint64) int {
		return cmp.Compare(a.Seq, seq)
	})
}

// isConfirmed reports whether the session has the answer of command seq, so
// that whatever still comes under it is late.
func isConfirmed(row *wire.SessionRow, seq uint64) bool {
	if seq >= row.Confirmed {
		return false
	}
	_, open := slices.BinarySearch(row.Unconfirmed, seq)
	return !open
}

// confirm forgets the answers of commands below seq, but for those that the
// session still waits for: one take may wait while thousands of others end.
func (m *Machine) confirm(s *session, seq uint64, but []uint64) error {
	s.row.Confirmed, s.row.Unconfirmed = seq, slices.Clone(but)
	m.dirtySession(s)
	n, kept := 0, 0
	for ; n < len(s.row.Answers) && s.row.Answers[n].Seq < seq; n++ {
		a := s.row.Answers[n]
		if !isConfirmed(&s.row, a.Seq) {
			s.row.Answers[kept] = a
			kept++
			continue
		}
		if err := m.unpinAnswer(a); err != nil {
			return err
		}
	}
	s.row.Answers = slices.Delete(s.row.Answers, kept, n)
	s.row.Blocked = slices.DeleteFunc(s.row.Blocked, func(b *wire.BlockedPut) bool { return isConfirmed(&s.row, b.Seq) })
	return nil
}

// endCommand keeps the answer of a command that succeeded for a retry, and
// opens or closes the session. Confirm opens one too: a session that was not
// used within SessionTTL can't be opened any more.
func (m *Machine) endCommand(c *context, cmd *wire.Command, answer *wire.Answer) {
	if answer.Code != 0 || !recognised(c, cmd) || m.broken != nil {
		return
	}
	if _, ok := cmd.Op.(*wire.Command_EndSession); ok {
		return // doing it again does no harm, and the session may be its own
	}
	_, confirms := cmd.Op.(*wire.Command_Confirm)
	if confirms && cmd.Close {
		if s, err := m.session(c.session); s == nil && err == nil {
			return // nothing to remember
		}
	}
	s, err := m.openSession(c, cmd)
	if err != nil {
		m.refuse(err)
		return
	}
	if !confirms && !c.stored {
		m.storeAnswer(s, cmd.Seq, answer)
	}
	switch {
	case cmd.Close:
		if err := m.closeSession(c, s); err != nil {
			m.refuse(err)
		}
	case s.row.Closed != 0:
		s.row.Closed = 0
		m.dirtySession(s)
	}
}

// closeSession returns what the session has leased, ends its locks and begins the time after
// which its answers are forgotten.
func (m *Machine) closeSession(c *context, s *session) error {
	s.row.Closed = c.now
	m.dirtySession(s)
	due := closedSession{c.now, s.id}
	at, found := slices.BinarySearchFunc(m.sessions.closed, due, closedSession.compare)
	if !found {
		m.sessions.closed = slices.Insert(m.sessions.closed, at, due)
	}
	m.releaseLocks(s.id)
	return m.returnLeases(c, s.id)
}

// sweepSessions forgets sessions that were closed long enough ago, a bounded
// number per entry. Which ones depends on the tables alone.
func (m *Machine) sweepSessions() {
	swept, n := 0, 0
	for ; n < len(m.sessions.closed) && swept < sweepMax; n++ {
		due := m.sessions.closed[n]
		if due.at > m.ago(uint64(gearsfs.SessionTTL)) {
			break
		}
		s, err := m.session(due.id)
		if err != nil {
			m.refuse(err)
			return
		}
		if s == nil || s.row.Closed != due.at {
			continue
		}
		if err := m.forget(s); err != nil {
			m.refuse(err)
			return
		}
		swept++
	}
	m.sessions.closed = slices.Delete(m.sessions.closed, 0, n)
}

// forget deletes a session's row, and with it its answers.
func (m *Machine) forget(s *session) error {
	for _, a := range s.row.Answers {
		if err := m.unpinAnswer(a); err != nil {
			return err
		}
	}
	s.row.Reset()
	s.forgotten = true
	m.dirtySession(s)
	return nil
}

// flushSessions puts dirty session rows into the open batch.
func (m *Machine) flushSessions() {
	for i, s := range m.sessions.dirty {
		m.sessions.dirty[i] = nil
		s.dirty = false
		m.scratch.key = persist.AppendSessionKey(m.scratch.key[:0], s.id)
		if s.forgotten {
			m.store.Delete(m.scratch.key)
			m.sessions.rows.drop(s.id)
			continue
		}
		m.set(m.scratch.key, &s.row)
	}
	m.sessions.dirty = m.sessions.dirty[:0]
	m.sessions.rows.shrink(nil)
}

// applyEndSession returns a session's leases, ends its locks and releases its orphans. With
// forget its answers go at once, else SessionTTL later unless it comes back.
func (m *Machine) applyEndSession(c *context, op *wire.EndSession) *wire.Answer {
	id := gearsfs.SessionID{Minted: int64(op.SessionMinted), Salt: op.SessionSalt}
	s, err := m.session(id)
	switch {
	case err != nil:
	case s != nil && !op.Forget:
		err = m.closeSession(c, s)
	default:
		if s != nil {
			err = m.forget(s)
		}
		if err == nil {
			m.releaseLocks(id)
			err = m.returnLeases(c, id)
		}
	}
	if err == nil {
		err = m.releaseOrphans(id)
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}
