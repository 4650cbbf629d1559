package replica

import (
	"fmt"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// simKeys are the streams; one of them has a limit.
var simKeys = []string{"a", "b", simLimited}

const (
	simLimited = "few"
	simLimit   = 5 // records
)

// simClient is a client of the group with one session after another, as
// dgm.Remote is: it finds the leader, says hello, and sends again under the
// same seqs what it has no answer to.
type simClient struct {
	s    *sim
	id   int
	cut  map[gearsfs.MemberID]bool
	loss int // of a hundred messages
	many int // operations at once
	left int // operations to begin

	conn    *simConn
	hint    gearsfs.MemberID
	seated  bool // welcome
	dead    bool
	session gearsfs.SessionID
	seq     uint64   // of the last change
	told    uint64   // what was last confirmed around older ones
	ops     []*simOp // in flight, in order
	held    []*wire.TakenRecord
	puts    int // records, ever
	done    int // operations that have ended well
	leaving bool
}

type opKind int

const (
	opPut opKind = iota
	opTake
	opLease
	opSettle
	opRead
)

// simOp is an operation in flight.
type simOp struct {
	kind     opKind
	seq      uint64 // 0: a read
	keys     []string
	n        int
	data     []string
	held     []*wire.TakenRecord // to settle
	back     bool
	last     bool          // of its session
	until    time.Duration // it may wait so long
	floor    uint64        // what had ended when it began
	sent     int
	sentBy   *simConn
	homeless bool // its session was not known
}

func (o *simOp) key() string { return o.keys[0] }

// command makes the change anew, to be proposed.
func (c *simClient) command(o *simOp) func(retry bool, refused []uint64) *wire.Command {
	id := c.session
	confirmed, unconfirmed := c.confirm()
	return func(retry bool, refused []uint64) *wire.Command {
		cmd := &wire.Command{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Seq: o.seq, Checked: true,
			Confirmed: confirmed, Unconfirmed: unconfirmed, Close: o.last,
		}
		target := &wire.Target{Ino: simFile}
		switch o.kind {
		case opPut:
			put := &wire.Put{Target: target, Key: o.key(), Retry: retry, Refused: refused}
			for _, data := range o.data {
				put.Records = append(put.Records, &wire.NewRecord{Data: []byte(data)})
			}
			cmd.Op = &wire.Command_Put{Put: put}
		case opTake, opLease:
			cmd.Op = &wire.Command_Take{Take: &wire.Take{
				Target: target, Keys: o.keys, Max: uint32(o.n), Lease: o.kind == opLease,
			}}
		case opSettle:
			settle := &wire.Settle{Return: o.back}
			for _, r := range o.held {
				settle.Receipts = append(settle.Receipts, &wire.Receipt{Ino: r.Ino, Key: r.Key, Pos: r.Pos, Seq: r.Seq, Fence: r.Fence})
			}
			cmd.Op = &wire.Command_Settle{Settle: settle}
		}
		return cmd
	}
}

// confirm is what inflight.confirm of package dgm says, with a smaller lag.
func (c *simClient) confirm() (confirmed uint64, unconfirmed []uint64) {
	oldest := c.seq + 1
	for _, o := range c.ops {
		if o.seq != 0 {
			oldest = min(oldest, o.seq)
		}
	}
	if c.seq+1-max(oldest, c.told) < 4 {
		return oldest, nil
	}
	c.told = c.seq + 1
	for _, o := range c.ops {
		if o.seq != 0 {
			unconfirmed = append(unconfirmed, o.seq)
		}
	}
	return c.told, unconfirmed
}

// step begins an operation, and comes again.
func (c *simClient) step() {
	if c.dead || c.left == 0 {
		return
	}
	if len(c.ops) < c.many && !c.leaving {
		c.left--
		c.begin()
	}
	c.s.after(c.s.between(0, c.s.plan.think), c.step)
}

func (c *simClient) begin() {
	rng := c.s.rng
	o := &simOp{keys: []string{simKeys[rng.IntN(len(simKeys))]}, n: 1 + rng.IntN(3), floor: c.s.history.ended}
	if rng.IntN(3) == 0 {
		o.until = c.s.now + c.s.between(0, time.Second)
	}
	switch dice := rng.IntN(100); {
	case len(c.held) > 0 && dice < 50:
		n := 1 + rng.IntN(len(c.held))
		o.kind, o.back, o.held = opSettle, dice < 15, slices.Clone(c.held[:n])
		c.held = slices.Delete(c.held, 0, n)
	case dice < 45:
		o.kind = opPut
		for range o.n {
			c.puts++
			o.data = append(o.data, fmt.Sprintf("%d/%d", c.id, c.puts))
		}
	case dice < 82:
		o.kind = opTake
		if dice < 65 {
			o.kind = opLease
		}
		if other := simKeys[rng.IntN(len(simKeys))]; other != o.keys[0] {
			o.keys = append(o.keys, other)
		}
	default:
		o.kind = opRead
		c.start(o)
		return
	}
	c.seq++
	o.seq = c.seq
	o.last = rng.IntN(100) == 0
	c.start(o)
}

func (c *simClient) start(o *simOp) {
	c.ops = append(c.ops, o)
	if c.conn == nil {
		c.connect()
		return
	}
	if c.seated {
		c.send(o)
	}
}

// connect tries the node that is said to lead, or any.
func (c *simClient) connect() {
	if c.dead {
		return
	}
	var live []*simNode
	for _, n := range c.s.nodes {
		if !n.removed || c.s.chance(10) {
			live = append(live, n)
		}
	}
	n := live[c.s.rng.IntN(len(live))]
	if hinted := c.s.node(c.hint); hinted != nil {
		n = hinted
	}
	c.hint = 0
	conn := &simConn{s: c.s, client: c, node: n, life: n.life}
	c.conn, c.seated = conn, false
	id := c.session
	conn.toNode(func(f *simFront) { f.hello(conn, id) })
	c.s.after(c.s.between(50*time.Millisecond, 600*time.Millisecond), func() {
		if c.conn == conn && !c.seated {
			c.drop(conn)
		}
	})
}

// drop gives a connection up and tries another one.
func (c *simClient) drop(conn *simConn) {
	c.leave(conn)
	c.s.after(c.s.between(time.Millisecond, 30*time.Millisecond), func() {
		if c.conn == nil {
			c.connect()
		}
	})
}

// leave closes a connection; the node hears of it sooner or later.
func (c *simClient) leave(conn *simConn) {
	c.conn, c.seated = nil, false
	conn.broken = true
	late := c.s.between(0, 50*time.Millisecond)
	if c.cut[conn.node.id] || c.s.chance(10) {
		late = 4 * time.Second
	}
	id, n := c.session, conn.node
	c.s.push(simEvent{at: c.s.now + late, node: n, life: conn.life, do: func() {
		if !conn.closed {
			n.front.leave(conn, id, false)
		}
	}})
}

// lost is told by the connection: it ends, and hint may lead.
func (c *simClient) lost(conn *simConn, hint gearsfs.MemberID) {
	if c.conn != conn {
		return
	}
	if c.hint = hint; c.s.chance(20) {
		c.hint = 0
	}
	c.drop(conn)
}

// welcome sends all that is in flight, in order.
func (c *simClient) welcome(id gearsfs.SessionID) {
	c.session, c.seated = id, true
	for _, o := range c.ops {
		c.send(o)
	}
}

func (c *simClient) send(o *simOp) {
	conn := c.conn
	if o.sentBy == conn {
		return
	}
	o.sentBy = conn
	o.sent++
	id := c.session
	if o.kind == opRead {
		conn.toNode(func(f *simFront) {
			f.read(conn, id, o.keys, func(shown []streamAt) { c.shown(o, shown) })
		})
	} else {
		ask := &simAsk{op: o, build: c.command(o), until: o.until, again: o.sent > 1}
		conn.toNode(func(f *simFront) { f.ask(conn, ask) })
	}
	c.s.after(max(0, o.until-c.s.now)+c.s.between(c.s.plan.patience/2, c.s.plan.patience), func() {
		if c.conn == conn && slices.Contains(c.ops, o) {
			c.drop(conn)
		}
	})
}

// end takes an operation out of those in flight.
func (c *simClient) end(o *simOp) {
	c.ops = slices.DeleteFunc(c.ops, func(p *simOp) bool { return p == o })
	c.done++
}

// answered gets a change's answer.
func (c *simClient) answered(o *simOp, a *wire.Answer, index uint64) {
	c.s.mark(uint64(c.id), o.seq, uint64(a.Code), index)
	if !slices.Contains(c.ops, o) {
		c.s.fail("client %d: command %d is answered twice", c.id, o.seq)
		return
	}
	if a.Code == uint32(gearsfs.ErrSession.Code) {
		if o.homeless {
			c.end(o) // it may have been done
			return
		}
		o.homeless = true
		c.lost(c.conn, c.conn.node.id) // hello tells more
		return
	}
	c.s.history.answered(c.session, o.seq, a, index, o.floor)
	c.end(o)
	if o.kind == opLease && a.Code == 0 && !o.last {
		c.held = append(c.held, a.Records...)
	}
	if o.last {
		c.held = nil // they went back with the session's end
	}
}

// gaveUp gets that a change has waited in vain.
func (c *simClient) gaveUp(o *simOp, shown []streamAt) {
	if !slices.Contains(c.ops, o) {
		return
	}
	if o.kind != opPut {
		c.s.mark(uint64(c.id), o.seq)
		c.s.history.read(o.keys, shown, o.floor)
		if slices.ContainsFunc(shown, func(at streamAt) bool { return at.ready > 0 }) {
			return // it came at the last moment: there is no answer, and it is asked for again
		}
	}
	c.end(o)
}

// shown gets what a read shows.
func (c *simClient) shown(o *simOp, shown []streamAt) {
	c.s.mark(uint64(c.id), shown[0].index, shown[0].next, shown[0].ready)
	c.s.history.read(o.keys, shown, o.floor)
	c.end(o)
}

// homeless learns that its session is forgotten. What may have been done it
// does not try again; what never left is asked for under the next session.
func (c *simClient) homeless(conn *simConn) {
	c.s.note("client %d: session %v is forgotten", c.id, c.session)
	c.renew(conn)
}

func (c *simClient) renew(conn *simConn) {
	c.session, c.seq, c.told, c.held = gearsfs.SessionID{}, 0, 0, nil
	c.ops = slices.DeleteFunc(c.ops, func(o *simOp) bool {
		return o.kind == opSettle || o.kind != opRead && o.sent > 0
	})
	for _, o := range c.ops {
		o.sentBy = nil
		if o.kind != opRead {
			c.seq++
			o.seq = c.seq
		}
	}
	c.drop(conn)
}

// goodbye ends the session in good order, once all is answered.
func (c *simClient) goodbye() {
	if c.dead || !c.seated || len(c.ops) > 0 {
		return
	}
	c.s.note("client %d says goodbye", c.id)
	conn, id := c.conn, c.session
	conn.toNode(func(f *simFront) { f.leave(conn, id, true) })
	c.renew(conn)
}

// die is the end of the client, with all that it holds.
func (c *simClient) die() {
	if c.dead {
		return
	}
	c.s.note("client %d dies", c.id)
	c.dead = true
	if c.conn != nil {
		c.leave(c.conn)
	}
}
