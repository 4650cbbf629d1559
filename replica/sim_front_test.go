package replica

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// simConn is a connection of a client to a node: what is sent arrives in order
// or not at all, and a connection that lost something carries nothing any more.
// Each side finds out in its own time.
type simConn struct {
	s        *sim
	client   *simClient
	node     *simNode
	life     int // of the node
	broken   bool
	closed   bool          // by the node
	up, down time.Duration // when the last that was sent arrives
}

// toNode lets the node do something a moment later.
func (c *simConn) toNode(do func(f *simFront)) {
	if c.broken {
		return
	}
	if c.client.cut[c.node.id] || c.s.chance(c.client.loss) {
		c.broken = true
		return
	}
	c.up = max(c.up, c.s.now+c.s.between(50*time.Microsecond, 2*time.Millisecond))
	c.s.push(simEvent{at: c.up, do: func() {
		switch {
		case c.broken:
		case !c.node.up || c.node.life != c.life:
			c.reset()
		default:
			c.node.event(simEvent{node: c.node, life: c.life, do: func() {
				if !c.closed {
					do(c.node.front)
				}
			}})
		}
	}})
}

// toClient lets the client do something a moment later.
func (c *simConn) toClient(do func()) {
	if c.broken || c.closed {
		return
	}
	if c.client.cut[c.node.id] || c.s.chance(c.client.loss) {
		c.broken = true
		return
	}
	c.down = max(c.down, c.s.now+c.s.between(50*time.Microsecond, 2*time.Millisecond))
	c.s.push(simEvent{at: c.down, do: func() {
		if !c.broken && c.client.conn == c {
			do()
		}
	}})
}

// reset tells the client that the connection is gone, where that reaches it.
func (c *simConn) reset() {
	c.closed = false
	c.toClient(func() { c.client.lost(c, 0) })
	c.broken = true
}

// close ends the connection from the node's side: the client is to ask hint.
func (c *simConn) close(hint gearsfs.MemberID) {
	c.toClient(func() { c.client.lost(c, hint) })
	c.closed = true
}

// simFront is what a node does for clients while it leads, as package dgm
// does: it knows sessions, lets operations wait, and ends sessions whose
// clients are gone.
type simFront struct {
	n        *simNode
	leads    bool
	tenure   int
	sessions map[gearsfs.SessionID]*simSeat
	takes    []*simAsk            // wait for records, oldest first
	puts     map[string][]*simAsk // wait for room, by stream
	asked    int
	woken    bool
	room     map[string]bool
	trying   map[string]bool // the first put of the line is in the log
}

// simSeat is a session at the node that leads.
type simSeat struct {
	id         gearsfs.SessionID
	conn       *simConn
	departures int
	inside     int       // commands in the log
	puts       []*simAsk // of those, puts
	refused    []*simAsk // puts that did not go in, and have not come again
	ended      bool
	forget     bool
}

// simAsk is a change that a client asks for.
type simAsk struct {
	seat  *simSeat
	conn  *simConn
	op    *simOp
	build func(retry bool, refused []uint64) *wire.Command // what is proposed stays with the Group
	until time.Duration                                    // it may wait till then
	again bool                                             // it was asked for before
	tried bool                                             // as the first in line
	place int                                              // among all, as they came
}

func newSimFront(n *simNode) *simFront {
	return &simFront{n: n, sessions: map[gearsfs.SessionID]*simSeat{}, puts: map[string][]*simAsk{},
		room: map[string]bool{}, trying: map[string]bool{}}
}

// later lets something happen in this tenure.
func (f *simFront) later(d time.Duration, do func()) {
	tenure := f.tenure
	f.n.soon(d, func() {
		if f.leads && f.tenure == tenure {
			do()
		}
	})
}

// leading implements Config.Leads.
func (f *simFront) leading(leads bool, term uint64) {
	n := f.n
	n.s.note("node %d leads: %v, term %d", n.id, leads, term)
	if leads == f.leads {
		n.s.fail("node %d: leads %v twice", n.id, leads)
		return
	}
	if _, at := n.machine.Applied(); leads && at != term {
		n.s.fail("node %d serves in term %d, and its state is of term %d", n.id, term, at)
		return
	}
	f.leads = leads
	f.tenure++
	if leads {
		f.later(0, f.adopt)
		return
	}
	f.gone()
}

// gone ends all connections.
func (f *simFront) gone() {
	hint := gearsfs.MemberID(f.n.group.Status().Leader)
	for _, seat := range f.sorted() {
		if seat.conn != nil {
			seat.conn.close(hint)
		}
	}
	clear(f.sessions)
	clear(f.puts)
	clear(f.trying)
	f.takes = nil
}

func (f *simFront) sorted() []*simSeat {
	seats := make([]*simSeat, 0, len(f.sessions))
	for _, seat := range f.sessions {
		seats = append(seats, seat)
	}
	slices.SortFunc(seats, func(a, b *simSeat) int {
		if a.id.Less(b.id) {
			return -1
		}
		return 1
	})
	return seats
}

// adopt gives the clients of sessions that the state knows a grace to come.
func (f *simFront) adopt() {
	known, err := f.n.machine.Sessions()
	if err != nil {
		f.n.s.fail("node %d: sessions: %w", f.n.id, err)
		return
	}
	var ids []gearsfs.SessionID
	for id := range known {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b gearsfs.SessionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	for _, id := range ids {
		f.later(f.n.s.plan.grace, func() {
			if f.sessions[id] == nil {
				f.end(&simSeat{id: id})
			}
		})
	}
}

// end proposes a session's end, behind all that it proposed here.
func (f *simFront) end(seat *simSeat) {
	seat.ended = true
	if f.sessions[seat.id] == seat {
		delete(f.sessions, seat.id)
	}
	f.takes = slices.DeleteFunc(f.takes, func(a *simAsk) bool { return a.seat == seat })
	for _, key := range simKeys {
		f.puts[key] = slices.DeleteFunc(f.puts[key], func(a *simAsk) bool { return a.seat == seat })
	}
	if seat.inside > 0 {
		return
	}
	f.n.s.note("session %v ends", seat.id)
	answered := f.n.once("a session's end")
	f.n.group.Propose(&Proposal{Durable: f.n.s.chance(50), Done: func(*wire.Answer, error) { answered() }, Command: &wire.Command{
		Checked: true, Op: &wire.Command_EndSession{EndSession: &wire.EndSession{
			SessionMinted: uint64(seat.id.Minted), SessionSalt: seat.id.Salt, Forget: seat.forget,
		}},
	}})
}

// hello seats a client's session.
func (f *simFront) hello(c *simConn, id gearsfs.SessionID) {
	if !f.leads {
		c.close(gearsfs.MemberID(f.n.group.Status().Leader))
		return
	}
	if id.IsZero() {
		id = gearsfs.SessionID{Minted: int64(f.n.group.Time()), Salt: f.n.s.rng.Uint64()}
		f.sessions[id] = &simSeat{id: id, conn: c}
		c.toClient(func() { c.client.welcome(id) })
		return
	}
	seat := f.sessions[id]
	if seat == nil {
		f.comeBack(c, id)
		return
	}
	if seat.conn != nil {
		seat.conn.close(0)
	}
	seat.conn = c
	stale := func(a *simAsk) bool { return a.seat == seat }
	f.takes = slices.DeleteFunc(f.takes, stale)
	for _, key := range simKeys {
		f.puts[key] = slices.DeleteFunc(f.puts[key], stale)
	}
	c.toClient(func() { c.client.welcome(id) })
}

// comeBack asks the state whether it remembers a session.
func (f *simFront) comeBack(c *simConn, id gearsfs.SessionID) {
	seat := &simSeat{id: id, conn: c, inside: 1}
	f.sessions[id] = seat
	answered := f.n.once("a session's return")
	f.n.group.Propose(&Proposal{Durable: true, Command: &wire.Command{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Seq: math.MaxUint64, Checked: true,
		Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}},
	}, Done: func(a *wire.Answer, err error) {
		answered()
		f.left(seat)
		switch {
		case err != nil:
			c.close(0)
		case a.Code == uint32(gearsfs.ErrSession.Code):
			delete(f.sessions, id)
			c.toClient(func() { c.client.homeless(c) })
		default:
			c.toClient(func() { c.client.welcome(id) })
		}
	}})
}

// left notes that a command has come out of the log.
func (f *simFront) left(seat *simSeat) {
	if seat.inside--; seat.inside == 0 && seat.ended && f.leads {
		f.end(seat)
	}
}

// leave is for a client that is gone, or says so.
func (f *simFront) leave(c *simConn, id gearsfs.SessionID, forget bool) {
	seat := f.sessions[id]
	if seat == nil || seat.conn != c {
		return
	}
	seat.conn, seat.forget = nil, forget
	if forget {
		f.end(seat)
		return
	}
	seat.departures++
	departure := seat.departures
	f.later(f.n.s.plan.grace, func() {
		if seat.conn == nil && seat.departures == departure && !seat.ended {
			f.end(seat)
		}
	})
}

// ask takes a change.
func (f *simFront) ask(c *simConn, a *simAsk) {
	a.seat = f.sessions[c.client.session]
	if a.seat == nil || a.seat.conn != c {
		c.close(0)
		return
	}
	a.conn = c
	f.asked++
	a.place = f.asked
	if a.op.kind != opPut {
		f.propose(false, a)
		return
	}
	a.seat.refused = slices.DeleteFunc(a.seat.refused, func(b *simAsk) bool { return b.op == a.op })
	if !a.again && (len(f.puts[a.op.key()]) > 0 || f.trying[a.op.key()]) {
		f.wait(a)
		return
	}
	asks := []*simAsk{a}
	for _, t := range f.takes {
		if len(asks) <= a.op.n && slices.Contains(t.op.keys, a.op.key()) {
			asks = append(asks, t)
		}
	}
	f.takes = slices.DeleteFunc(f.takes, func(t *simAsk) bool { return slices.Contains(asks, t) })
	f.propose(false, asks...)
}

func (f *simFront) propose(retry bool, asks ...*simAsk) {
	var ps []*Proposal
	for _, a := range asks {
		a.seat.inside++
		if a.op.kind == opPut {
			a.seat.puts = append(a.seat.puts, a)
		}
		a.tried = retry
		answered := f.n.once("a change")
		ps = append(ps, &Proposal{Command: a.build(retry, a.refused()), Durable: true, Done: func(answer *wire.Answer, err error) {
			answered()
			f.done(a, answer, err)
		}})
	}
	f.n.group.Propose(ps...)
}

func (f *simFront) done(a *simAsk, answer *wire.Answer, err error) {
	f.left(a.seat)
	a.seat.puts = slices.DeleteFunc(a.seat.puts, func(b *simAsk) bool { return a == b })
	if a.tried {
		f.trying[a.op.key()] = false
	}
	if err != nil {
		if code := gearsfs.CodeOf(err); code != gearsfs.ErrNotLeader.Code && code != gearsfs.ErrMaybe.Code && code != gearsfs.ErrOverload.Code {
			f.n.s.note("node %d refuses: %v", f.n.id, err)
		}
		a.conn.close(gearsfs.MemberID(f.n.group.Status().Leader))
		return
	}
	index := f.n.answered[answer]
	delete(f.n.answered, answer)
	waits := answer.Code == uint32(gearsfs.ErrEmpty.Code) || answer.Code == uint32(gearsfs.ErrFull.Code) && !answer.Refused
	if waits && a.until > f.n.s.now && f.leads && a.seat.conn == a.conn && !a.seat.ended {
		f.wait(a)
		return
	}
	if waits {
		a.refuse()
	}
	a.conn.toClient(func() { a.conn.client.answered(a.op, answer, index) })
	f.passed(a)
}

// passed is for a put that is over: the next may fit, or was held up by it.
func (f *simFront) passed(a *simAsk) {
	if a.op.kind == opPut && f.leads && len(f.puts[a.op.key()]) > 0 {
		f.room[a.op.key()] = true
		f.later(0, f.wake)
	}
}

// wait lets a change wait for what it lacks: puts in the order in which they
// came, not in which they were refused.
func (f *simFront) wait(a *simAsk) {
	if a.op.kind != opPut {
		f.takes = append(f.takes, a)
	} else {
		line := append(f.puts[a.op.key()], a)
		slices.SortFunc(line, func(a, b *simAsk) int { return a.place - b.place })
		f.puts[a.op.key()] = line
		if !a.tried {
			f.passed(a) // room may have been made while it held up others
		}
	}
	f.later(max(0, a.until-f.n.s.now), func() { f.giveUp(a) })
}

// giveUp ends a change that has waited in vain. That there was nothing is a
// certain read.
func (f *simFront) giveUp(a *simAsk) {
	line := f.takes
	if a.op.kind == opPut {
		line = f.puts[a.op.key()]
	}
	at := slices.Index(line, a)
	if at < 0 {
		return
	}
	line = slices.Delete(slices.Clone(line), at, at+1)
	if a.op.kind == opPut {
		f.puts[a.op.key()] = line
		a.refuse()
		f.passed(a)
	} else {
		f.takes = line
	}
	f.certain(a.conn, a.op.keys, func(shown []streamAt) { a.conn.client.gaveUp(a.op, shown) })
}

// certain reads streams and tells the client when what it saw is certain.
func (f *simFront) certain(c *simConn, keys []string, tell func([]streamAt)) {
	var shown []streamAt
	for _, key := range keys {
		at, err := f.n.show(key)
		if err != nil {
			f.n.s.fail("node %d: read %s: %w", f.n.id, key, err)
		}
		shown = append(shown, at)
	}
	answered := f.n.once("a read")
	f.n.group.WhenCertain(func(err error) {
		answered()
		if err != nil {
			c.close(gearsfs.MemberID(f.n.group.Status().Leader))
			return
		}
		c.toClient(func() { tell(shown) })
	})
}

// read serves a certain read.
func (f *simFront) read(c *simConn, id gearsfs.SessionID, keys []string, tell func([]streamAt)) {
	if seat := f.sessions[id]; seat == nil || seat.conn != c {
		c.close(0)
		return
	}
	f.certain(c, keys, tell)
}

// Applied implements file.Observer.
func (f *simFront) Applied(_ uint64, touched []file.Touched, _ []file.Changed) {
	for _, t := range touched {
		if t.Room {
			f.room[string(t.Key)] = true
		}
		if (t.Room || t.Ready) && f.leads && !f.woken {
			f.woken = true
			f.later(f.n.s.between(0, time.Millisecond), f.wake)
		}
	}
}

func (f *simFront) MembersChanged() {}

func (f *simFront) Freed(uint64, []gearsfs.Extent) {}

func (f *simFront) Verify(index uint64, state file.View) {
	sum, err := file.HashState(context.Background(), state, nil)
	if err != nil {
		f.n.s.fail("node %d: hash the state: %w", f.n.id, err)
	}
	f.n.s.history.verified(f.n, index, sum)
	state.Close()
}

// refuse notes that a put is not made; it may come again, if nobody hears of that.
func (a *simAsk) refuse() {
	if a.op.kind == opPut {
		a.seat.refused = append(a.seat.refused, a)
	}
}

// refused are the seqs of the puts before a that were refused here.
func (a *simAsk) refused() (seqs []uint64) {
	for _, b := range a.seat.refused {
		if a.op.kind == opPut && b.op.key() == a.op.key() && b.op.seq < a.op.seq {
			seqs = append(seqs, b.op.seq)
		}
	}
	return seqs
}

// early says that an earlier put of the session to the stream is in the log: it
// may have been refused, and then goes first.
func (a *simAsk) early() bool {
	return slices.ContainsFunc(a.seat.puts, func(b *simAsk) bool { return b.place < a.place && b.op.key() == a.op.key() })
}

// wake tries what waits for records or room that is there now.
func (f *simFront) wake() {
	f.woken = false
	for _, key := range simKeys {
		if line := f.puts[key]; f.room[key] && len(line) > 0 && !f.trying[key] && !line[0].early() {
			f.puts[key], f.trying[key] = line[1:], true
			f.propose(true, line[0])
		}
		f.room[key] = false
	}
	var run []*simAsk
	promised := map[string]uint64{}
	f.takes = slices.DeleteFunc(f.takes, func(a *simAsk) bool {
		for _, key := range a.op.keys {
			if f.n.machine.StreamState(simFile, gearsfs.Key(key)).Ready > promised[key] {
				promised[key] += uint64(a.op.n)
				run = append(run, a)
				return true
			}
		}
		return false
	})
	for _, a := range run {
		f.propose(false, a)
	}
}
