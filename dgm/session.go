package dgm

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
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
// detach moves it to departed, end to ended (its leases go back); the state
// machine forgets its answers SessionTTL later. A goodbye and Local.Close go
// straight to the end. One who comes back before SessionTTL begins anew under
// the same id, with the answers and without the leases.
//
// Invariants:
//
//  1. It is in Volume.sessions exactly until it is ended.
//  2. Its end is proposed once, when all that it proposed has been answered,
//     so nothing that it leased or that is remembered of it stays behind.
//  3. It is in the sessions of at, and of no other peer.
type session struct {
	id     gearsfs.SessionID
	caller gearsfs.Caller
	client string // "host pid process"
	local  bool

	door  door          // its commands are inside while they are in the log
	epoch atomic.Uint32 // raised when the client says hello again: it has given up what it asked before

	// Guarded by Volume.mu.
	at         *peer // the connection; nil for one that has departed and for a Local
	departures int
	opens      map[gearsfs.Ino]int
	waits      int // its ops in lines
	watch      *watch
	ended      bool
	forget     bool     // with the end its answers go at once
	over       []func() // called when the end is applied
}

// Client says who a session belongs to, for permissions and for `waits`.
type Client struct {
	Caller  gearsfs.Caller
	Host    string
	PID     int
	Process string
}

func (c Client) String() string { return fmt.Sprintf("%s %d %s", c.Host, c.PID, c.Process) }

// newSessionLocked makes a session of a client.
func (v *Volume) newSessionLocked(id gearsfs.SessionID, c Client, local bool) *session {
	s := &session{id: id, caller: c.Caller, client: c.String(), local: local, opens: make(map[gearsfs.Ino]int)}
	v.sessions[id] = s
	return s
}

// attach finds or makes the session of a client that says hello on a
// connection, having open what opens lists. A zero id asks for a new one; back
// says that the node does not know the id, or not any more.
func (v *Volume) attach(id gearsfs.SessionID, c Client, p *peer, opens []uint64) (s *session, back bool, err error) {
	back = !id.IsZero()
	if !back {
		if id, err = v.mint(false); err != nil {
			return nil, false, err
		}
	}
	v.mu.Lock()
	s = v.sessions[id]
	known := s != nil
	s, err = v.attachLocked(s, id, c, p)
	if err != nil {
		v.mu.Unlock()
		return nil, false, err
	}
	waiting, watch := v.waits.of(s), s.watch
	released := v.declareLocked(s, opens)
	v.mu.Unlock()
	v.watches.lose(watch)
	for _, o := range waiting {
		o.cancel(gearsfs.ErrCancelled) // its client asks again
	}
	for _, ino := range released {
		v.letGo(s, ino)
	}
	return s, back && !known, nil
}

// attachLocked gives a session, nil for a new one, its connection.
func (v *Volume) attachLocked(s *session, id gearsfs.SessionID, c Client, p *peer) (*session, error) {
	if v.closed {
		return nil, gearsfs.ErrClosed
	}
	if s != nil && (s.local || !sameCaller(s.caller, c.Caller)) {
		return nil, gearsfs.ErrAccess.Because("session %s belongs to another client", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, gearsfs.ErrClosed
	case len(p.sessions) >= peerSessionsMax:
		return nil, gearsfs.ErrOverload.Because("more than %d sessions on one connection", peerSessionsMax)
	}
	if s == nil {
		s = v.newSessionLocked(id, c, false)
	}
	s.epoch.Add(1)
	if s.at != nil && s.at != p {
		s.at.lose(id)
	}
	s.at = p
	p.sessions[id] = s
	return s, nil
}

func sameCaller(a, b gearsfs.Caller) bool {
	return a.UID == b.UID && slices.Equal(a.GIDs, b.GIDs) && a.Checked == b.Checked
}

// detach takes its connection from a session, which ends after grace unless
// its client comes back.
func (v *Volume) detach(s *session, p *peer, grace time.Duration) {
	v.mu.Lock()
	if s.at != p || s.ended || v.closed {
		v.mu.Unlock()
		return
	}
	s.at = nil
	s.departures++
	if departure := s.departures; grace > 0 {
		time.AfterFunc(grace, func() { v.expire(s, departure) })
		v.mu.Unlock()
		return
	}
	v.endLocked(s, false)()
}

// expire ends a session that has not come back since a departure.
func (v *Volume) expire(s *session, departure int) {
	v.mu.Lock()
	if s.at != nil || s.departures != departure || s.ended || v.closed {
		v.mu.Unlock()
		return
	}
	v.endLocked(s, false)()
}

// end cancels what a session waits for and gives back what it holds. Its
// answers stay for a retry until SessionTTL, or go now with forget. over is
// called when that is done, or the volume is closed.
func (v *Volume) end(s *session, forget bool, over func()) {
	v.mu.Lock()
	if s.ended || v.closed {
		v.mu.Unlock()
		over()
		return
	}
	s.over = append(s.over, over)
	v.endLocked(s, forget)()
}

// endLocked marks a session as ended. It unlocks mu with what it returns, which
// does the rest.
func (v *Volume) endLocked(s *session, forget bool) (rest func()) {
	s.ended, s.forget = true, forget
	delete(v.sessions, s.id)
	if s.at != nil {
		s.at.lose(s.id)
		s.at = nil
	}
	for ino, n := range s.opens {
		decrement(v.opens, ino, n)
	}
	clear(s.opens)
	waiting, watch := v.waits.of(s), s.watch
	return func() {
		v.mu.Unlock()
		v.watches.drop(watch)
		for _, o := range waiting {
			o.cancel(gearsfs.ErrClosed)
		}
		if s.door.shut() {
			v.proposeEnd(s)
		}
	}
}

// proposeEnd puts a session's end into the log, behind all that it proposed.
func (v *Volume) proposeEnd(s *session) {
	v.order(nil, endCommand(s.id, s.forget), func(_ *wire.Answer, err error) {
		v.noteEnd(s.id, err)
		for _, over := range s.over {
			over()
		}
		if !s.forget {
			v.sweepLater()
		}
	})
}

func (v *Volume) noteEnd(id gearsfs.SessionID, err error) {
	if err != nil && !v.isClosed() {
		v.log.Warn("a session's end was not recorded", "session", id, "error", err)
	}
}

func endCommand(id gearsfs.SessionID, forget bool) *wire.Command {
	return &wire.Command{Checked: true, Op: &wire.Command_EndSession{EndSession: &wire.EndSession{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: forget,
	}}}
}

// sweepLater lets an entry come when what ends now is to be forgotten: the
// state machine does that by the time of entries.
func (v *Volume) sweepLater() {
	time.AfterFunc(gearsfs.SessionTTL+time.Second, func() {
		if !v.isClosed() {
			v.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}, nil)
		}
	})
}

// confirm keeps a session's row, making it where there is none. then gets
// gearsfs.ErrSession where the session is older than SessionTTL and unknown: what
// it did is forgotten.
func (v *Volume) confirm(s *session, then func(*wire.Answer, error)) {
	v.order(s, &wire.Command{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Checked: true,
		Seq: math.MaxUint64, // none of the client's
		Op:  &wire.Command_Confirm{Confirm: &wire.Confirm{}},
	}, then)
}

// keepOpen makes a new session's row after a while, so that a client may wait
// longer than SessionTTL before its first change.
func (v *Volume) keepOpen(s *session) {
	time.AfterFunc(gearsfs.SessionTTL/2, func() {
		v.mu.Lock()
		over := s.ended || v.closed
		v.mu.Unlock()
		if !over {
			v.confirm(s, nil)
		}
	})
}

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
	ids := slices.SortedFunc(maps.Keys(known), func(a, b gearsfs.SessionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	for _, id := range ids {
		if id.Salt&localSession != 0 {
			v.order(nil, endCommand(id, true), nil)
			continue
		}
		time.AfterFunc(graceTCP, func() { v.disown(id) })
	}
	v.sweepLater() // what was closed before
	return nil
}

// disown ends a session of before the volume was opened that has not come back.
func (v *Volume) disown(id gearsfs.SessionID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sessions[id] != nil || v.closed {
		return
	}
	v.order(nil, endCommand(id, false), func(_ *wire.Answer, err error) { // in front of whatever a hello brings
		v.noteEnd(id, err)
		v.sweepLater()
	})
}

// opened counts an open of ino and waits for an unlink that may not have seen
// it; the caller then looks whether the inode is still there. It returns false,
// and does nothing, where the session has ended.
func (v *Volume) opened(s *session, ino gearsfs.Ino, then func()) bool {
	v.mu.Lock()
	if s.ended {
		v.mu.Unlock()
		return false
	}
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
	return true
}

// released takes one open back. The last one of an inode without a name lets
// the inode go.
func (v *Volume) released(s *session, ino gearsfs.Ino) {
	v.mu.Lock()
	n := s.opens[ino]
	if n > 0 {
		decrement(s.opens, ino, 1)
		decrement(v.opens, ino, 1)
	}
	v.mu.Unlock()
	if n == 1 {
		v.letGo(s, ino)
	}
}

// declareLocked makes a session's opens what its client says that they are (an
// inode and how often, in turn), and returns those that it has no more.
func (v *Volume) declareLocked(s *session, opens []uint64) (released []gearsfs.Ino) {
	before := s.opens
	s.opens = make(map[gearsfs.Ino]int, len(opens)/2)
	for i := 0; i+1 < len(opens); i += 2 {
		s.opens[gearsfs.Ino(opens[i])] += int(min(opens[i+1], math.MaxInt32))
	}
	for ino, n := range s.opens {
		v.opens[ino] += n
	}
	for ino, n := range before {
		decrement(v.opens, ino, n)
		if s.opens[ino] == 0 {
			released = append(released, ino)
		}
	}
	return released
}

// letGo tells the state that a session does not have an inode open any more,
// where that has no name left.
func (v *Volume) letGo(s *session, ino gearsfs.Ino) {
	if v.machine.IsOrphan(ino) {
		v.order(s, &wire.Command{
			SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Checked: true,
			Op: &wire.Command_Release{Release: &wire.Release{Ino: uint64(ino)}},
		}, nil)
	}
}

func decrement(counts map[gearsfs.Ino]int, ino gearsfs.Ino, by int) {
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
func (v *Volume) holders(ino gearsfs.Ino) []uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	u := v.waits.unlinking[ino]
	if u == nil {
		u = new(unlinking)
		v.waits.unlinking[ino] = u
	}
	u.count++
	var ids []gearsfs.SessionID
	if v.opens[ino] > 0 {
		for id, s := range v.sessions {
			if s.opens[ino] > 0 {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b gearsfs.SessionID) int {
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

func (v *Volume) unlinked(ino gearsfs.Ino) {
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
