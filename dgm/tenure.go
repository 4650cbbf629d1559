package dgm

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// tenure is the time in which this node leads its volume and has applied the
// first entry of its own term: only then it serves sessions. All that it knows
// of them is in the tenure and goes with it, so the next one begins with
// nothing but what the state says.
//
//	       leads(true)         begin               leads(false), Close
//	(none) ──────────▶ coming ──────▶ serving ───────────────────────▶ over
//	                     └──────────────────────────────────────────────▲
//	                                leads(false), Close, begin failed
//
// The state is right for a tenure from its first moment on: what a former
// leader, or this node in a former tenure, had on its way is applied or is lost.
//
// Invariants:
//
//  1. Volume.tenure is the one that serves, nil where none does. A tenure that
//     is over never serves again.
//  2. When a tenure is over nothing is handed to the replica for it any more,
//     and the next does not begin before all that was is answered: applied, or
//     lost, or in the log before what makes this node lead. So what is proposed
//     was decided by what the tenure itself knew, and the next learns from the
//     state who holds what: an unlink that is applied later would name holders
//     whom nobody asks whether they are.
//  3. An operation is answered once, wherever the end meets it. It is idle: it
//     comes to join (mayWaitLocked refuses) or to submit (the gate or the desk
//     refuses). It waits: clear cancels it. The gate holds it: clear drains the
//     gate, and what comes later is refused. It is proposed: the replica answers
//     at once, the outcome being known or not; what changed nothing then comes to
//     join. It is an open that waits for an unlink, or a hello for its Confirm:
//     these are proposed.
//  4. At the end nothing is proposed for the sessions: they live on in the state
//     and in their clients, who say hello to the next leader under the same ids
//     and send again what has no answer, under the same numbers.
type tenure struct {
	vol   *Volume
	term  uint64
	begun chan struct{} // closed when it serves or never will
	err   error         // why it never will; read after begun
	lost  chan struct{} // closed when it is over
	gate  gate
	desk  door          // inside are commands while the replica has them
	left  chan struct{} // closed when it is over and nothing is inside

	// mu guards the sessions and what waits. It is never held over I/O or a
	// call into the replica; it is taken after Volume.mu and before peer.mu and
	// the machine's own lock, never while those are held.
	mu       sync.Mutex
	sessions map[gearsfs.SessionID]*session
	ending   map[gearsfs.SessionID]*session // their end is on its way
	opens    map[gearsfs.Ino]int            // over all sessions
	absent   map[gearsfs.SessionID]*session // adopted and not back; also in sessions
	waits    waits
	recent   recent
	turns    map[gearsfs.Ino]*turn // where operations go in turn, or just pass
	over     error                 // why it is over, nil while it is not

	ticks    ticks       // of no use before it serves
	alarms   alarms      // stopped when it is over
	removing atomic.Bool // a step of removing what is doomed is on its way
}

// Graces: how long a session keeps its leases while its client is lost. In a
// group of several the client may have to find out which node leads.
const (
	graceAlone   = 2 * time.Second
	graceSeveral = 10 * time.Second
	// graceLasting is that of a session whose process is started again: it may
	// have to open its volume first.
	graceLasting = 30 * time.Second
)

func (v *Volume) newTenure(term uint64) *tenure {
	t := &tenure{
		vol: v, term: term,
		begun: make(chan struct{}), lost: make(chan struct{}), left: make(chan struct{}),
		sessions: make(map[gearsfs.SessionID]*session),
		ending:   make(map[gearsfs.SessionID]*session),
		opens:    make(map[gearsfs.Ino]int),
		absent:   make(map[gearsfs.SessionID]*session),
		turns:    make(map[gearsfs.Ino]*turn),
	}
	t.waits.init()
	return t
}

// leads implements replica.Config.Leads.
func (v *Volume) leads(leads bool, term uint64) {
	v.mu.Lock()
	last := v.last
	var next *tenure
	if leads && !v.closed {
		next = v.newTenure(term)
		v.last = next
	}
	v.mu.Unlock()
	if last != nil {
		last.end(errNotLeader)
		v.owned.Go(last.clear)
	}
	if next != nil {
		v.owned.Go(func() { next.begin(last) })
	}
}

// errNotLeader is what requests are answered with by a node that does not lead;
// Volume.spoken adds who does.
var errNotLeader = gearsfs.ErrNotLeader

// begin makes a tenure serve, behind the one before it.
func (t *tenure) begin(last *tenure) {
	v := t.vol
	select {
	case <-v.opened:
	case <-v.root.Done():
	}
	if last != nil {
		<-last.left
	}
	err := t.prepare(v.root)
	if err == nil {
		v.mu.Lock()
		t.mu.Lock()
		if err = t.over; err == nil {
			t.initTicks()
			v.tenure.Store(t)
			v.leaderChangedLocked()
			t.alarms.after(v.grace(), func() { t.disown(false) })
			t.alarms.after(graceLasting, func() { t.disown(true) })
		}
		t.mu.Unlock()
		v.mu.Unlock()
	}
	t.err = err
	if err != nil {
		t.end(err)
		t.clear()
	} else {
		t.sweepLater() // what was closed before
		t.ticks.look()
		t.countQuotas()
		t.removeDoomed()
		v.noteMembers()
	}
	close(t.begun)
	switch gearsfs.CodeOf(err) {
	case 0, gearsfs.ErrNotLeader.Code, gearsfs.ErrClosed.Code, gearsfs.ErrMaybe.Code:
	default:
		v.fatal(fmt.Errorf("begin to serve: %w", err))
	}
}

// prepare makes the state and the tenure ready for sessions.
func (t *tenure) prepare(ctx context.Context) error {
	v := t.vol
	if v.group == nil || ctx.Err() != nil {
		return gearsfs.ErrClosed
	}
	if !v.machine.Initialised() {
		if err := v.initialise(ctx); err != nil {
			return err
		}
	}
	if err := v.introduceSelf(ctx); err != nil {
		return err
	}
	return t.adopt()
}

// adopt takes over the sessions that the state knows: they have a grace to come
// back, in which they count as holding open what the state says and what is
// unlinked meanwhile. Those of this node's last process are over where it was
// alone: nobody can come back.
func (t *tenure) adopt() error {
	v := t.vol
	known, err := v.machine.Sessions()
	if err != nil {
		return fmt.Errorf("adopt sessions: %w", err)
	}
	held, err := v.machine.Held()
	if err != nil {
		return fmt.Errorf("adopt sessions: %w", err)
	}
	ids := slices.SortedFunc(maps.Keys(known), compareSessions)
	restarted := !v.ruled.Swap(true) && v.alone()
	t.mu.Lock()
	var over []*session
	for _, id := range ids {
		s := t.newSessionLocked(id, Client{}, id.Salt&localSession != 0)
		s.opens, s.rowed = make(map[gearsfs.Ino]int), true
		for _, ino := range held[id] {
			s.opens[ino] = 1
			t.opens[ino]++
		}
		if s.local && restarted {
			over = append(over, s)
			continue
		}
		t.absent[id] = s
	}
	t.mu.Unlock()
	for _, s := range over {
		t.endSession(s, true, func(error) {})
	}
	return nil
}

func compareSessions(a, b gearsfs.SessionID) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// disown ends the adopted sessions that have not come back: first those that
// are not lasting, later those that are.
func (t *tenure) disown(lasting bool) {
	t.mu.Lock()
	absent := slices.SortedFunc(maps.Values(t.absent), func(a, b *session) int { return compareSessions(a.id, b.id) })
	t.mu.Unlock()
	for _, s := range absent {
		t.mu.Lock()
		gone := t.absent[s.id] == s
		t.mu.Unlock()
		if gone && isLasting(s.id) == lasting {
			t.endSession(s, false, func(error) {})
		}
	}
}

// end makes the tenure be over because of why, without waiting for anything;
// clear does the rest. It is idempotent.
func (t *tenure) end(why error) {
	v := t.vol
	t.mu.Lock()
	if t.over != nil {
		t.mu.Unlock()
		return
	}
	t.over = why
	t.mu.Unlock()
	v.mu.Lock()
	if v.tenure.CompareAndSwap(t, nil) {
		v.leaderChangedLocked()
	}
	v.mu.Unlock()
	t.ticks.close()
	t.alarms.stop()
	if t.desk.shut() {
		close(t.left)
	}
	close(t.lost)
}

// clear ends what waits in a tenure that is over and closes its clients'
// connections behind the answers, so that they go to who leads now.
func (t *tenure) clear() {
	v := t.vol
	t.mu.Lock()
	why := t.over
	waiting := t.waits.all()
	peers := make(map[*peer]bool)
	var watchers []*watcher
	for _, s := range t.sessions {
		watchers = append(watchers, &s.watcher)
		if s.at != nil {
			peers[s.at] = true
		}
	}
	t.mu.Unlock()
	for _, o := range t.gate.shut(why) {
		t.refuse(o, why)
	}
	for _, o := range waiting {
		o.cancel(why)
	}
	for _, w := range watchers {
		w.close(why)
	}
	if v.isClosed() {
		return // Serve closes them when all is answered
	}
	for p := range peers {
		p.part()
	}
}

// ended returns why the tenure is over, nil while it is not.
func (t *tenure) ended() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

// grace is how long a session whose client may come back keeps its leases.
func (v *Volume) grace() time.Duration {
	if v.alone() {
		return graceAlone
	}
	return graceSeveral
}

// leader says whether this node serves sessions, else where the one is that
// leads, as far as that is known. changed is closed when that may be different.
func (v *Volume) leader() (self bool, addrs string, changed <-chan struct{}) {
	v.mu.Lock()
	changed = v.leaderChanged
	v.mu.Unlock()
	if v.tenure.Load() != nil {
		return true, "", changed
	}
	return false, v.leaderAddrs(), changed
}

// leaderAddrs are the addresses of another node that leads, "" where none is
// known.
func (v *Volume) leaderAddrs() string {
	id := gearsfs.MemberID(v.group.Status().Leader)
	if id == 0 || id == v.member {
		return ""
	}
	row, ok := v.machine.MemberRow(id)
	if !ok || row.Removed {
		return ""
	}
	return row.Addrs
}

// leaderMoved implements replica.Config.LeaderChanged.
func (v *Volume) leaderMoved() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.leaderChangedLocked()
}

func (v *Volume) leaderChangedLocked() {
	close(v.leaderChanged)
	v.leaderChanged = make(chan struct{})
}

// initialise makes the empty volume, durably.
func (v *Volume) initialise(ctx context.Context) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("mint a volume id: %w", err)
	}
	uid, gid := v.cfg.Root.UID, uint32(0)
	if len(v.cfg.Root.GIDs) > 0 {
		gid = v.cfg.Root.GIDs[0]
	}
	err := v.propose(ctx, &wire.Command{Op: &wire.Command_Init{
		Init: &wire.Init{Id: id, Name: v.cfg.Name, Uid: uid, Gid: gid},
	}})
	if err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	return nil
}

// introduceSelf has the member table say of this node what it says of itself,
// as far as that is possible: another member may have its name.
func (v *Volume) introduceSelf(ctx context.Context) error {
	self := v.self()
	row, ok := v.machine.MemberRow(v.member)
	if ok && (row.Removed || row.Name == self.Name && row.Addrs == self.Addrs) {
		return nil
	}
	err := v.propose(ctx, &wire.Command{Checked: true, Op: &wire.Command_SetMember{
		SetMember: &wire.SetMember{Member: self},
	}})
	switch gearsfs.CodeOf(err) {
	case gearsfs.ErrExists.Code, gearsfs.ErrInvalid.Code, gearsfs.ErrNameTooLong.Code, gearsfs.ErrTooBig.Code, gearsfs.ErrForeign.Code:
		v.log.Warn("the volume does not know this node's name and addresses", "error", err)
		return nil
	}
	return err
}

// propose sends one of the volume's own commands and waits until it is applied
// and on disk.
func (v *Volume) propose(ctx context.Context, cmd *wire.Command) error {
	done := make(chan error, 1)
	v.group.Propose(&replica.Proposal{Command: cmd, Durable: true, Done: func(a *wire.Answer, err error) {
		if err == nil {
			err = gearsfs.FromCode(gearsfs.Code(a.Code), a.Reason)
		}
		done <- err
	}})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return gearsfs.ErrClosed
	}
}
