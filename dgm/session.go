package dgm

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// session is one client of a volume, in one tenure.
//
//	        hello                   connection lost
//	(none) ───────▶ attached ───────────────────────▶ departed ──▶ ended ──▶ forgotten
//	                    ▲            hello                │ grace     SessionTTL
//	                    ├─────────────────────────────────┤
//	                    └───────────────────────────── absent ◀── (adopted)
//
// detach moves it to departed, endSession to ended (its leases go back); the
// state machine forgets its answers SessionTTL later. A goodbye goes straight to
// the end. One who comes back before SessionTTL begins anew under the same id,
// with the answers and without the leases. Over a unix socket and in this
// process there is no network to break, so there a lost connection is a dead
// client, who has no grace, unless the session is a lasting one.
//
// Invariants:
//
//  1. It is in tenure.sessions exactly until it is ended.
//  2. Its end is proposed once, when all that it proposed has been answered,
//     and each unlink that names it, so nothing that it leased or holds or that
//     is remembered of it stays behind. Who says hello under its id meanwhile
//     waits for that.
//  3. It is in the sessions of at, and of no other peer.
type session struct {
	id     gearsfs.SessionID
	caller gearsfs.Caller
	client string // "host pid process"
	local  bool   // its client is in this node's process, or was when it was minted
	ten    *tenure

	trails  trails        // where its paths led
	uploads uploads       // changes that wait for their payloads to be stored
	door    door          // its commands are inside while they are in the log, and the unlinks that name it
	afar    atomic.Bool   // its client is a Local of another node, and reads there
	near    atomic.Bool   // its client is a Local of any node, which stores payloads itself
	epoch   atomic.Uint32 // raised when the client says hello again: it has given up what it asked before

	// Guarded by tenure.mu.
	at         *peer  // nil for one that has departed
	attempt    uint64 // of the hello that attached it
	departures int
	opens      map[gearsfs.Ino]int
	rowed      bool // the state knows it
	unsure     bool // it has come back, and the state is asked whether it knows it
	waits      int  // its ops in lines
	puts       putsUnderWay
	refused    refusedPuts
	held       []*op // puts that would overtake some of these, in their order
	letting    *op   // the first of them is sent on its way
	ended      bool
	forget     bool          // with the end its answers go at once
	over       []func(error) // called when the end is applied

	watcher watcher
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
func (t *tenure) newSessionLocked(id gearsfs.SessionID, c Client, local bool) *session {
	s := &session{
		id: id, caller: c.Caller, client: c.String(), local: local, ten: t,
		opens: make(map[gearsfs.Ino]int),
	}
	s.watcher = watcher{ws: &t.vol.watches, by: func() gearsfs.SessionID { return id }}
	t.sessions[id] = s
	return s
}

// errEnding says that the end of a session is still on its way.
var errEnding = errors.New("the session is ending")

// greeting is what a client says when it comes, or comes back.
type greeting struct {
	id      gearsfs.SessionID // zero asks for a new one
	client  Client
	attempt uint64   // one that comes behind a later one of the session is void
	opens   []uint64 // what it has open: an inode and how often, in turn
	lasting bool     // of a new session: it survives the death of its process
}

// attach finds or makes the session of a client that says hello on a
// connection. back says that the client has an id and that only the state can
// say whether it is still known. errEnding: again is called when it is time to
// try again.
func (t *tenure) attach(g greeting, p *peer, again func()) (s *session, back bool, err error) {
	id := g.id
	back = !id.IsZero()
	if !back {
		if id, err = t.vol.mint(p.conn == nil, g.lasting); err != nil {
			return nil, false, err
		}
	}
	t.mu.Lock()
	if leaving := t.ending[id]; leaving != nil {
		leaving.over = append(leaving.over, func(error) { again() })
		t.mu.Unlock()
		return nil, false, errEnding
	}
	s = t.sessions[id]
	back = back && (s == nil || s.unsure || t.absent[id] != nil)
	g.id = id
	s, err = t.attachLocked(s, g, p)
	if err != nil {
		t.mu.Unlock()
		return nil, false, err
	}
	s.unsure = back
	waiting := t.waits.of(s)
	released := t.declareLocked(s, g.opens)
	t.mu.Unlock()
	s.watcher.lose()
	for _, o := range waiting {
		o.cancel(gearsfs.ErrCancelled) // its client asks again
	}
	for _, ino := range released {
		t.letGo(s, ino)
	}
	return s, back, nil
}

// attachLocked gives a session, nil for a new one, its connection.
func (t *tenure) attachLocked(s *session, g greeting, p *peer) (*session, error) {
	id, c := g.id, g.client
	switch {
	case t.over != nil:
		return nil, t.over
	case s == nil:
	case t.absent[id] != nil:
		s.caller, s.client = c.Caller, c.String()
		s.trails.forget()
	case !sameCaller(s.caller, c.Caller):
		return nil, gearsfs.ErrAccess.Because("session %s belongs to another client", id)
	case g.attempt < s.attempt: // on a connection that its client has given up
		return nil, gearsfs.ErrCancelled
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
		s = t.newSessionLocked(id, c, p.conn == nil)
	}
	delete(t.absent, id)
	s.epoch.Add(1)
	s.attempt = g.attempt
	if s.at != nil && s.at != p {
		s.at.lose(s)
	}
	s.at = p
	s.afar.Store(p.courier)
	s.near.Store(p.courier || p.conn == nil)
	p.sessions[id] = s
	return s, nil
}

func sameCaller(a, b gearsfs.Caller) bool {
	return a.UID == b.UID && slices.Equal(a.GIDs, b.GIDs) && a.Checked == b.Checked
}

// detach takes its connection from a session, which ends after grace unless
// its client comes back; a lasting one has a grace of its own.
func (t *tenure) detach(s *session, p *peer, grace time.Duration) {
	if isLasting(s.id) {
		grace = graceLasting
	}
	t.mu.Lock()
	if s.at != p || s.ended || t.over != nil {
		t.mu.Unlock()
		return
	}
	s.at = nil
	s.departures++
	if departure := s.departures; grace > 0 {
		t.alarms.after(grace, func() { t.expire(s, departure) })
		t.mu.Unlock()
		return
	}
	t.endLocked(s, false)()
}

// expire ends a session that has not come back since a departure.
func (t *tenure) expire(s *session, departure int) {
	t.mu.Lock()
	if s.at != nil || s.departures != departure || s.ended || t.over != nil {
		t.mu.Unlock()
		return
	}
	t.endLocked(s, false)()
}

// endSession cancels what a session waits for and gives back what it holds. Its
// answers stay for a retry until SessionTTL, or go now with forget. over is
// called when that is done, or with why it was not recorded.
func (t *tenure) endSession(s *session, forget bool, over func(error)) {
	t.mu.Lock()
	if t.over != nil || s.ended && t.ending[s.id] != s {
		err := t.over
		t.mu.Unlock()
		over(err)
		return
	}
	s.over = append(s.over, over)
	if s.ended {
		t.mu.Unlock()
		return
	}
	t.endLocked(s, forget)()
}

// endLocked marks a session as ended. It unlocks mu with what it returns, which
// does the rest.
func (t *tenure) endLocked(s *session, forget bool) (rest func()) {
	s.ended, s.forget = true, forget
	delete(t.sessions, s.id)
	delete(t.absent, s.id)
	t.ending[s.id] = s
	if s.at != nil {
		s.at.lose(s)
		s.at = nil
	}
	for ino, n := range s.opens {
		decrement(t.opens, ino, n)
	}
	clear(s.opens)
	waiting := t.waits.of(s)
	return func() {
		t.mu.Unlock()
		s.watcher.close(gearsfs.ErrClosed)
		for _, o := range waiting {
			o.cancel(gearsfs.ErrClosed)
		}
		t.endMemory(s.id, forget)
		if s.door.shut() {
			t.proposeEnd(s)
		}
	}
}

// proposeEnd puts a session's end into the log, behind all that it proposed.
func (t *tenure) proposeEnd(s *session) {
	t.order(nil, endCommand(s.id, s.forget), func(_ *wire.Answer, err error) {
		t.mu.Lock()
		delete(t.ending, s.id)
		over := s.over
		s.over = nil
		lasts := t.over == nil
		t.mu.Unlock()
		if err != nil && lasts && !errors.Is(err, gearsfs.ErrMaybe) { // else the tenure is about to end
			t.vol.log.Warn("a session's end was not recorded", "session", s.id, "error", err)
		}
		for _, f := range over {
			f(err)
		}
		if !s.forget && lasts {
			t.sweepLater()
		}
	})
}

func endCommand(id gearsfs.SessionID, forget bool) *wire.Command {
	return &wire.Command{Checked: true, Op: &wire.Command_EndSession{EndSession: &wire.EndSession{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: forget,
	}}}
}

// sweepLater lets an entry come when what ends now is to be forgotten: the
// state machine does that by the time of entries.
func (t *tenure) sweepLater() {
	t.alarms.after(gearsfs.SessionTTL+time.Second, func() {
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}, nil)
	})
}

// confirm keeps a session's row, making it where there is none. then gets
// gearsfs.ErrSession where the session is older than SessionTTL and unknown: what
// it did is forgotten.
func (t *tenure) confirm(s *session, then func(error)) {
	t.order(s, &wire.Command{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Checked: true,
		Seq: math.MaxUint64, // none of the client's
		Op:  &wire.Command_Confirm{Confirm: &wire.Confirm{}},
	}, func(answer *wire.Answer, err error) {
		if err == nil {
			err = gearsfs.FromCode(gearsfs.Code(answer.Code), answer.Reason)
		}
		if err == nil {
			t.confirmed(s)
		}
		then(err)
	})
}

// confirmed notes that the state knows a session.
func (t *tenure) confirmed(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.rowed, s.unsure = true, false
}

// keepOpen makes a new session's row after a while, so that a client may wait
// longer than SessionTTL before its first change.
func (t *tenure) keepOpen(s *session) {
	t.alarms.after(gearsfs.SessionTTL/2, func() {
		t.mu.Lock()
		over := s.ended || s.rowed || t.over != nil
		t.mu.Unlock()
		if !over {
			t.confirm(s, func(error) {})
		}
	})
}
