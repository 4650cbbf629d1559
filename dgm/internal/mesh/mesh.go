package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// meshConfig is what a mesh knows of its node.
type meshConfig struct {
	// identity says who this node is, and of which volume; it is asked by Begin.
	identity func() (self *wire.Member, volume persist.ID)
	tls      *tls.Config
	log      *slog.Logger
	roster   Roster
	// offered is called for a snapshot that another member has for this node,
	// answered for what another says to one that this node has for it, lend for
	// a piece that another wants of such a one. They are called on goroutines
	// that read from connections, and must not wait.
	offered  func(from gearsfs.MemberID, s *wire.Snapshot)
	answered func(from gearsfs.MemberID, n *wire.Notice)
	lend     func(to gearsfs.MemberID, want *wire.Fetch, done func(*wire.Response))
	// fatal is told where another process runs as this node.
	fatal func(error)
}

// Roster says who the members are; it is the state machine.
type Roster interface {
	Members() ([]gearsfs.Member, error)
	MemberRow(id gearsfs.MemberID) (row *wire.MemberRow, ok bool)
}

// Group is what takes messages and hears of the ways to others; it is the
// replica.
type Group interface {
	Receive(message []byte)
	Heard(ctx context.Context) error
	Status() replica.Status
	Unreachable(member gearsfs.MemberID)
	Died(member gearsfs.MemberID)
}

// Mesh connects this node with the other members of its volume: a link to each,
// over which messages go one way, and the connections that the others have made
// for theirs.
//
//	this node                                       another
//	Send ---> peerLink ------- Notice ------> peer.Notice ---> its Group
//	Group <--- notice <------- Notice ------- peerLink <--- its Send
//	puller ------------------- Fetch -------> fetch, of snapshots
//
// A member that the node has not heard of is welcome all the same as long as it
// knows the volume: the entry that added it may be one that only itself has to
// give, as when a node begins with an empty log, or was away for long.
type Mesh struct {
	cfg         meshConfig
	incarnation uint64
	snapshots   *snapshots
	verifier    *verifier
	bulk        bulkWays
	station     atomic.Pointer[station] // nil before Begin

	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	owned sync.WaitGroup

	// links is replaced as a whole, with mu held; Send reads it without.
	links atomic.Pointer[map[gearsfs.MemberID]*peerLink]

	updating sync.Mutex // held by update; taken before mu

	mu       sync.Mutex // not held over I/O or a call of the replica
	closed   bool
	arrived  map[gearsfs.MemberID]*arrival
	guests   map[gearsfs.MemberID]gearsfs.Member // not in the roster yet
	lives    map[gearsfs.MemberID]uint64         // incarnations
	twins    map[gearsfs.MemberID]twin           // the latest that came beside those
	expelled string                              // who says that this node was removed
}

// station is what a mesh works for.
type station struct {
	group  Group
	self   *wire.Member
	volume persist.ID
}

func (st *station) id() gearsfs.MemberID { return gearsfs.MemberID(st.self.Id) }

// Peer is the far end of a connection that was made to this node. Accept says which
// member's it is, and for what; until then it is nobody's. It belongs to the
// goroutine that reads from the connection.
type Peer struct {
	Conn   *transport.Conn
	member gearsfs.MemberID
	bulk   bool
}

// Member is whose connection it is; 0 is nobody's.
func (p *Peer) Member() gearsfs.MemberID { return p.member }

// Bulk says that the connection is for what is large.
func (p *Peer) Bulk() bool { return p.bulk }

// arrival is a member's latest connection to this node, for notices.
type arrival struct {
	peer *Peer
	self *wire.Member
	life uint64 // its incarnation
}

// guestsMax bounds the members that are only known by what they say.
const guestsMax = 64

func makeMesh(cfg meshConfig) *Mesh {
	m := &Mesh{
		cfg:         cfg,
		incarnation: rand.Uint64() | 1,
		arrived:     make(map[gearsfs.MemberID]*arrival),
		guests:      make(map[gearsfs.MemberID]gearsfs.Member),
		lives:       make(map[gearsfs.MemberID]uint64),
		twins:       make(map[gearsfs.MemberID]twin),
	}
	m.links.Store(&map[gearsfs.MemberID]*peerLink{})
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// Begin connects to the members; what arrives is for group from now on. The
// node's identity must say which member of which volume it is. Before that the
// mesh drops what is to be sent, and answers that it is too early.
func (m *Mesh) Begin(group Group) {
	self, volume := m.cfg.identity()
	m.station.Store(&station{group, self, volume})
	m.Update()
	if m.verifier != nil {
		m.verifier.begin()
	}
}

// Update takes over who the members are, and where. It waits for nothing but
// the state.
func (m *Mesh) Update() {
	st := m.station.Load()
	if st == nil {
		return
	}
	m.updating.Lock()
	defer m.updating.Unlock()
	members, err := m.cfg.roster.Members()
	if err != nil {
		m.cfg.log.Error("the members can't be read", "error", err)
		return
	}
	if row, ok := m.cfg.roster.MemberRow(st.id()); ok && row.Removed {
		m.expel("the volume's log")
	}
	m.mu.Lock()
	want := maps.Clone(m.guests)
	m.mu.Unlock()
	var known []gearsfs.MemberID
	for id := range want {
		if _, ok := m.cfg.roster.MemberRow(id); ok {
			known = append(known, id)
			delete(want, id)
		}
	}
	for _, member := range members {
		want[member.ID] = member
	}
	delete(want, st.id())

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range known {
		delete(m.guests, id)
	}
	m.connectLocked(want)
	for id, a := range m.arrived {
		if _, ok := want[id]; !ok && !m.closed {
			delete(m.arrived, id)
			m.owned.Go(func() { a.peer.Conn.Close() }) //nolint:errcheck // it is told when it comes again
		}
	}
}

// connectLocked makes the links those to want.
func (m *Mesh) connectLocked(want map[gearsfs.MemberID]gearsfs.Member) {
	if m.closed {
		return
	}
	links := maps.Clone(*m.links.Load())
	for id, l := range links {
		if _, ok := want[id]; !ok {
			l.stop()
			delete(links, id)
		}
	}
	for id, member := range want {
		if l := links[id]; l != nil {
			l.moved(member)
			continue
		}
		l := newPeerLink(m, member)
		links[id] = l
		m.owned.Go(l.run)
	}
	m.links.Store(&links)
}

// Others are the members that this node has links to, connected or not.
func (m *Mesh) Others() []gearsfs.MemberID { return slices.Sorted(maps.Keys(*m.links.Load())) }

func (m *Mesh) link(to gearsfs.MemberID) *peerLink { return (*m.links.Load())[to] }

// Send implements replica.Peers. It writes to the member's connection right
// away, as far as the socket takes it.
func (m *Mesh) Send(to gearsfs.MemberID, messages [][]byte) {
	if l := m.link(to); l != nil {
		l.send(messages)
		return
	}
	if st := m.station.Load(); st != nil {
		st.group.Unreachable(to)
	}
}

// say sends a notice that is not raft's, where there is a connection.
func (m *Mesh) say(to gearsfs.MemberID, n *wire.Notice) {
	if l := m.link(to); l != nil {
		l.say(n)
	}
}

// Ask has another node answer a question. Errors: gearsfs.ErrNoNode with the
// reason why it can't be reached, ctx's, and the node's own.
func (m *Mesh) Ask(ctx context.Context, to gearsfs.MemberID, op *wire.NodeOp) (*wire.Response, error) {
	l := m.link(to)
	if l == nil {
		return nil, gearsfs.ErrNotMember.Because("%x is not a member", to)
	}
	conn, err := l.current()
	if err != nil {
		return nil, err
	}
	return call(ctx, conn, &wire.Request{Kind: &wire.Request_Node{Node: op}})
}

// reachable reports whether there is a connection to a member, and if not, why.
func (m *Mesh) reachable(to gearsfs.MemberID) (ok bool, why string) {
	if st := m.station.Load(); st != nil && to == st.id() {
		return true, ""
	}
	l := m.link(to)
	if l == nil {
		return false, "not a member"
	}
	if _, err := l.current(); err != nil {
		return false, err.Error()
	}
	return true, ""
}

// Warnings are for the node's status, the worst first.
func (m *Mesh) Warnings() []string {
	var all []string
	m.mu.Lock()
	expelled := m.expelled
	m.mu.Unlock()
	if expelled != "" {
		all = append(all, "this node was removed from the volume (says "+expelled+"): stop it; to come back it needs new data")
	}
	if m.verifier != nil {
		all = append(all, m.verifier.warnings()...)
	}
	if m.snapshots != nil {
		all = append(all, m.snapshots.warnings()...)
	}
	return all
}

// expel notes that this node was removed.
func (m *Mesh) expel(says string) {
	m.mu.Lock()
	first := m.expelled == ""
	if first {
		m.expelled = says
	}
	m.mu.Unlock()
	if first {
		m.cfg.log.Error("this node was removed from the volume: stop it; to come back it needs new data", "says", says)
	}
}

// Said returns what the members that are connected to this node say of
// themselves.
func (m *Mesh) Said() []*wire.Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*wire.Member
	for _, a := range m.arrived {
		if a.peer.Conn.Err() == nil {
			all = append(all, a.self)
		}
	}
	return all
}

// isHere reports whether a member has a live connection to this node.
func (m *Mesh) isHere(id gearsfs.MemberID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.arrived[id]
	return a != nil && a.peer.Conn.Err() == nil
}

// met notes which process of a member there was talk with. Another one than
// before means that the member's process has died, however quickly it is back.
func (m *Mesh) met(id gearsfs.MemberID, life uint64) {
	m.mu.Lock()
	before := m.lives[id]
	m.lives[id] = life
	m.mu.Unlock()
	if before != 0 && before != life {
		m.station.Load().group.Died(id)
	}
}

// Accept answers a node that says which member it is. The caller has made sure
// that it may be trusted. p belongs to that member from then on. It is called on
// the goroutine that reads from the connection.
func (m *Mesh) Accept(p *Peer, hello *wire.Peer) (*wire.Response, error) {
	st := m.station.Load()
	if st == nil {
		return nil, gearsfs.ErrNoNode.Because("the node is starting")
	}
	self := hello.Self
	if self == nil {
		self = new(wire.Member)
	}
	id := gearsfs.MemberID(hello.Member)
	row, known := m.cfg.roster.MemberRow(id)
	if known && row.Removed && bytes.Equal(hello.VolumeId, st.volume[:]) {
		resp := answer.Failure(gearsfs.ErrNotMember.Because("%s (member %x) was removed from the volume", self.Name, uint64(id)))
		resp.Joined = &wire.Joined{Removed: true}
		return resp, nil
	}
	if err := st.check(hello, self, row); err != nil {
		return nil, err
	}
	if !known && !m.guest(id, self) {
		return nil, gearsfs.ErrNotMember.Because("%s (member %x) is not known here", self.Name, uint64(id))
	}
	if err := m.checkTwin(id, hello.Incarnation); err != nil {
		return nil, err
	}
	p.member, p.bulk = id, hello.Bulk
	if !hello.Bulk {
		m.mu.Lock()
		before := m.arrived[id]
		m.arrived[id] = &arrival{p, self, hello.Incarnation}
		if before != nil && before.life != hello.Incarnation && !m.closed {
			m.owned.Go(func() { before.peer.Conn.Close() }) //nolint:errcheck // it is over either way
		}
		m.mu.Unlock()
		if l := m.link(id); l != nil {
			l.kick()
		} else {
			m.Update() // the member was removed meanwhile
		}
	}
	m.met(id, hello.Incarnation)
	return &wire.Response{Joined: &wire.Joined{
		VolumeId: st.volume[:], Member: st.self.Id, Format: persist.FormatVersion, Incarnation: m.incarnation,
	}}, nil
}

// check refuses who does not fit; row is what is known of it, or nil.
func (st *station) check(hello *wire.Peer, self *wire.Member, row *wire.MemberRow) error {
	here := st.self.Name
	switch {
	case hello.Format != persist.FormatVersion:
		return gearsfs.ErrFormat.Because("the data of %s is of format version %d, that of %s of %d", here, persist.FormatVersion, self.Name, hello.Format)
	case !bytes.Equal(hello.VolumeId, st.volume[:]):
		return gearsfs.ErrForeign.Because("%s is a node of volume %s, %s of %x", here, st.volume, self.Name, hello.VolumeId)
	case hello.To != st.self.Id:
		return gearsfs.ErrNotMember.Because("this is %s (member %x), not member %x", here, st.self.Id, hello.To)
	case hello.Member == 0 || hello.Member == st.self.Id:
		return gearsfs.ErrForeign.Because("member %x is %s: was its data copied?", hello.Member, here)
	case row != nil && len(row.NodeId) > 0 && !bytes.Equal(row.NodeId, self.NodeId):
		return gearsfs.ErrForeign.Because("member %x of the volume has other data than %s", hello.Member, self.Name)
	case self.Name == here:
		return gearsfs.ErrExists.Because("this node has the name %s too: each node of a volume needs its own", here)
	}
	return nil
}

// guest welcomes a member that is not in the roster yet.
func (m *Mesh) guest(id gearsfs.MemberID, self *wire.Member) bool {
	m.mu.Lock()
	_, again := m.guests[id]
	if !again && len(m.guests) >= guestsMax {
		m.mu.Unlock()
		return false
	}
	m.guests[id] = gearsfs.Member{ID: id, Name: self.Name, Addrs: self.Addrs}
	m.mu.Unlock()
	m.Update()
	return true
}

// Notice takes what a member sends. It is called on the goroutine that reads
// from the connection; body is the mesh's.
func (m *Mesh) Notice(p *Peer, body []byte) {
	st := m.station.Load()
	if p.member == 0 || p.bulk || st == nil {
		return // it has not said who it is
	}
	n := new(wire.Notice)
	if err := n.UnmarshalVTUnsafe(body); err != nil {
		m.cfg.log.Warn("a notice can't be decoded", "member", p.member, "error", err)
		return
	}
	for _, message := range n.Messages {
		st.group.Receive(message)
	}
	if n.Snapshot != nil {
		m.cfg.offered(p.member, n.Snapshot)
	}
	if n.Taken != 0 || n.Refused != "" {
		m.cfg.answered(p.member, n)
	}
}

// Fetch serves a piece of a snapshot to another member; done is called once.
func (m *Mesh) Fetch(p *Peer, want *wire.Fetch, done func(*wire.Response)) {
	if p.member == 0 || !p.bulk || m.cfg.lend == nil {
		done(answer.Failure(gearsfs.ErrAccess.Because("only a member may fetch a snapshot")))
		return
	}
	m.cfg.lend(p.member, want, done)
}

// Close ends all links and waits for what they have begun. The group must be
// closed before.
func (m *Mesh) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.bulk.end()
	if m.verifier != nil {
		m.verifier.close()
	}
	if m.snapshots != nil {
		m.snapshots.close()
	}
	m.stop()
	m.owned.Wait()
}
