package dgm

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// graceTCP is how long a session whose network connection is lost keeps its
// leases: a broken connection can't be told from a dead client, and a client
// that comes back goes on. Over a unix socket there is no network to break, so
// a lost connection is a dead client.
const graceTCP = 2 * time.Second

// session is one client of a volume: a Local, or a Remote somewhere.
//
//	        hello, Local            connection lost
//	(none) ─────────────▶ attached ────────────────▶ departed ──▶ ended ──▶ forgotten
//	                          ▲            hello         │  grace      SessionTTL
//	                          └──────────────────────────┘
//
// detach moves it to departed, end to ended (its leases go back), forget to
// forgotten (its answers go). A goodbye and Local.Close go straight to the end.
type session struct {
	id     gears.SessionID
	caller gears.Caller
	client string // "host pid process"
	local  bool

	// Guarded by Volume.mu.
	conns  int
	opens  map[gears.Ino]int
	waits  int // its ops in lines
	ended  bool
	kept   bool // keepOpen sees to it
	expiry *time.Timer
	watch  *watch
}

// Client says who a session belongs to, for permissions and for `waits`.
type Client struct {
	Caller  gears.Caller
	Host    string
	PID     int
	Process string
}

func (c Client) String() string { return fmt.Sprintf("%s %d %s", c.Host, c.PID, c.Process) }

// attach finds or makes the session of a client that says hello. A zero id
// asks for a new one. resumed says that the node remembers what it has open.
func (v *Volume) attach(id gears.SessionID, c Client, local bool) (s *session, resumed bool, err error) {
	if id.IsZero() {
		if id, err = v.mint(local); err != nil {
			return nil, false, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, false, gears.ErrClosed
	}
	s, resumed = v.sessions[id]
	if !resumed {
		s = &session{id: id, caller: c.Caller, client: c.String(), local: local, opens: make(map[gears.Ino]int)}
		v.sessions[id] = s
	}
	if !sameCaller(s.caller, c.Caller) {
		return nil, false, gears.ErrAccess.Because("session %s belongs to another user", id)
	}
	s.conns++
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	return s, resumed, nil
}

func sameCaller(a, b gears.Caller) bool {
	return a.UID == b.UID && slices.Equal(a.GIDs, b.GIDs) && a.Checked == b.Checked
}

// detach takes one connection from a session. Without any left it ends after
// grace unless its client comes back.
func (v *Volume) detach(s *session, grace time.Duration) {
	v.mu.Lock()
	s.conns--
	if s.conns > 0 || s.ended || v.closed {
		v.mu.Unlock()
		return
	}
	if grace > 0 {
		s.expiry = time.AfterFunc(grace, func() { v.expire(s) })
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	v.end(s, false)
}

// expire ends a session that is still without a connection.
func (v *Volume) expire(s *session) {
	v.mu.Lock()
	gone := s.conns == 0 && !v.closed
	v.mu.Unlock()
	if gone {
		v.end(s, false)
	}
}

// end cancels what a session waits for and gives back what it holds. Its
// answers stay for a retry until SessionTTL, or go now with forget.
func (v *Volume) end(s *session, forget bool) {
	v.mu.Lock()
	if s.ended || v.closed {
		v.mu.Unlock()
		return
	}
	s.ended = true
	delete(v.sessions, s.id)
	for ino, n := range s.opens {
		decrement(v.opens, ino, n)
	}
	waiting := v.waits.of(s)
	v.mu.Unlock()
	v.watches.drop(s.watch)
	for _, o := range waiting {
		o.cancel(gears.ErrClosed)
	}
	v.endSession(s.id, forget)
	if !forget {
		v.forgetLater(s.id)
	}
}

// endSession proposes the end of a session. It stands behind every command
// that the session proposed before, so it returns their leases too.
func (v *Volume) endSession(id gears.SessionID, forget bool) {
	v.group.Propose(&replica.Proposal{
		Command: &wire.Command{Checked: true, Op: &wire.Command_EndSession{EndSession: &wire.EndSession{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: forget,
		}}},
		Done: func(_ *wire.Answer, err error) {
			if err != nil && !v.isClosed() {
				v.log.Warn("a session's end was not recorded", "session", id, "error", err)
			}
		},
	})
}

// forgetLater drops a session's answers once no retry can come any more.
func (v *Volume) forgetLater(id gears.SessionID) {
	time.AfterFunc(gears.SessionTTL, func() {
		v.mu.Lock()
		_, back := v.sessions[id]
		closed := v.closed
		v.mu.Unlock()
		if !back && !closed {
			v.endSession(id, true)
		}
	})
}

// confirmation opens a session's row where it has none.
func confirmation(id gears.SessionID) *replica.Proposal {
	return &replica.Proposal{
		Command: &wire.Command{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Seq: firstSeq, Checked: true,
			Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}},
		},
		Done: func(*wire.Answer, error) {},
	}
}

// firstSeq is the sequence number of the command that opens a session without
// doing anything; clients count from behind it.
const firstSeq = 1

func (v *Volume) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

// adoptSessions takes over the sessions that the state knows when the volume
// opens: those of this node's last process are over, the others have a grace
// to come back.
func (v *Volume) adoptSessions() error {
	known, err := v.machine.Sessions()
	if err != nil {
		return err
	}
	ids := slices.SortedFunc(maps.Keys(known), func(a, b gears.SessionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	for _, id := range ids {
		if id.Salt&localSession != 0 {
			v.endSession(id, true)
			continue
		}
		time.AfterFunc(graceTCP, func() {
			v.mu.Lock()
			_, back := v.sessions[id]
			closed := v.closed
			v.mu.Unlock()
			if !back && !closed {
				v.endSession(id, false)
			}
		})
		v.forgetLater(id)
	}
	return nil
}

// opened counts an open of ino and waits for an unlink that may not have seen
// it; the caller then looks whether the inode is still there.
func (v *Volume) opened(s *session, ino gears.Ino, then func()) {
	v.mu.Lock()
	s.opens[ino]++
	v.opens[ino]++
	u := v.waits.unlinking[ino]
	if u != nil {
		u.after = append(u.after, then)
	}
	v.mu.Unlock()
	if u == nil {
		then()
	}
}

// released takes one open back. The last one of an inode without a name lets
// the inode go.
func (v *Volume) released(s *session, ino gears.Ino) {
	v.mu.Lock()
	n := s.opens[ino]
	if n > 0 {
		decrement(s.opens, ino, 1)
		decrement(v.opens, ino, 1)
	}
	v.mu.Unlock()
	if n == 1 && v.machine.IsOrphan(ino) {
		v.group.Propose(&replica.Proposal{
			Command: &wire.Command{
				SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Checked: true,
				Op: &wire.Command_Release{Release: &wire.Release{Ino: uint64(ino)}},
			},
			Done: func(*wire.Answer, error) {},
		})
	}
}

func decrement(counts map[gears.Ino]int, ino gears.Ino, by int) {
	if counts[ino] -= by; counts[ino] <= 0 {
		delete(counts, ino)
	}
}

// unlinking is an unlink on its way through the log: opens of its inode wait
// for it, since it may not know them as holders.
type unlinking struct {
	count int
	after []func()
}

// holders names the sessions that have ino open, for a command that may remove
// its last name, and notes that the command is on its way; unlinked undoes that.
func (v *Volume) holders(ino gears.Ino) []uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	u := v.waits.unlinking[ino]
	if u == nil {
		u = new(unlinking)
		v.waits.unlinking[ino] = u
	}
	u.count++
	var ids []gears.SessionID
	if v.opens[ino] > 0 {
		for id, s := range v.sessions {
			if s.opens[ino] > 0 {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b gears.SessionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	out := make([]uint64, 0, 2*len(ids))
	for _, id := range ids {
		out = append(out, uint64(id.Minted), id.Salt)
	}
	return out
}

func (v *Volume) unlinked(ino gears.Ino) {
	v.mu.Lock()
	u := v.waits.unlinking[ino]
	u.count--
	var after []func()
	if u.count == 0 {
		delete(v.waits.unlinking, ino)
		after = u.after
	}
	v.mu.Unlock()
	for _, f := range after {
		f()
	}
}
