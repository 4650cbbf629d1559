package mesh

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// How a link is made and kept.
const (
	hailTimeout   = 2 * time.Second       // to reach a member at one address
	linkPauseMin  = 20 * time.Millisecond // between tries, jittered
	linkPauseMax  = time.Second           // doubled up to here
	linkSteady    = time.Second           // lost after less than this: not tried again at once
	farewellPause = 500 * time.Millisecond
)

// What a link keeps for a member that it is not connected to: the latest, so
// that the first messages of an election are not lost while nodes start.
const (
	keptMessagesMax = 64
	keptBytesMax    = 256 << 10
)

// noticeBytesMax is where a notice ends and the next begins; one message may be
// larger.
const noticeBytesMax = 4 << 20

// peerFrameBytesMax holds a message with the largest entry: what fits through
// the frame of a client, and what is around it.
const peerFrameBytesMax = 40 << 20

// Transport is how nodes talk with each other, and a node with everyone.
func Transport() transport.Config {
	return transport.Config{FrameBytesMax: peerFrameBytesMax}
}

// peerLink keeps a connection to one member: it is dialled until it is made, and
// again when it is lost.
type peerLink struct {
	mesh *Mesh
	id   gearsfs.MemberID
	ctx  context.Context
	stop context.CancelFunc
	hint chan struct{} // of capacity 1: now it may work

	mu      sync.Mutex
	member  gearsfs.Member
	conn    *transport.Conn // nil while there is none
	why     error           // why there is none
	kept    [][]byte        // messages for when there is one
	keptLen int             // their bytes
}

func newPeerLink(m *Mesh, member gearsfs.Member) *peerLink {
	l := &peerLink{mesh: m, id: member.ID, member: member, hint: make(chan struct{}, 1)}
	l.why = gearsfs.ErrNoNode.Because("not connected yet")
	l.ctx, l.stop = context.WithCancel(m.ctx)
	return l
}

// moved notes where the member is from now on.
func (l *peerLink) moved(member gearsfs.Member) {
	l.mu.Lock()
	elsewhere := l.member.Addrs != member.Addrs
	l.member = member
	l.mu.Unlock()
	if elsewhere {
		l.kick()
	}
}

// group is there: links are made from Begin on.
func (l *peerLink) group() Group { return l.mesh.station.Load().group }

func (l *peerLink) who() gearsfs.Member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.member
}

// kick has the link tried at once.
func (l *peerLink) kick() {
	select {
	case l.hint <- struct{}{}:
	default:
	}
}

// current is the connection, or why there is none.
func (l *peerLink) current() (*transport.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil, l.why
	}
	if err := l.conn.Err(); err != nil {
		return nil, err
	}
	return l.conn, nil
}

// send sends messages, or keeps the latest where there is no connection.
func (l *peerLink) send(messages [][]byte) {
	l.mu.Lock()
	conn, whole := l.conn, true
	if conn == nil {
		whole = l.keepLocked(messages)
	}
	l.mu.Unlock()
	if conn != nil {
		whole = l.notify(conn, messages)
	}
	if !whole {
		l.group().Unreachable(l.id)
	}
}

// keepLocked returns false where something had to go.
func (l *peerLink) keepLocked(messages [][]byte) bool {
	for _, message := range messages {
		l.kept = append(l.kept, message)
		l.keptLen += len(message)
	}
	n := 0
	for ; len(l.kept)-n > keptMessagesMax || l.keptLen > keptBytesMax; n++ {
		l.keptLen -= len(l.kept[n])
	}
	l.kept = slices.Delete(l.kept, 0, n)
	return n == 0
}

// notify hands messages to a connection, several in a notice. It returns false
// where some are lost.
func (l *peerLink) notify(conn *transport.Conn, messages [][]byte) bool {
	for len(messages) > 0 {
		n, size := 1, len(messages[0])
		for n < len(messages) && size+len(messages[n]) <= noticeBytesMax {
			size += len(messages[n])
			n++
		}
		if !l.write(conn, &wire.Notice{Messages: messages[:n]}) {
			return false
		}
		messages = messages[n:]
	}
	return true
}

func (l *peerLink) write(conn *transport.Conn, n *wire.Notice) bool {
	body, err := n.MarshalVT()
	if err == nil {
		err = conn.Notify(body)
	}
	if errors.Is(err, gearsfs.ErrTooBig) {
		l.mesh.cfg.log.Error("a message is too large for another node", "node", l.who().Name, "error", err)
	}
	return err == nil
}

// say sends a notice, if there is a connection.
func (l *peerLink) say(n *wire.Notice) bool {
	conn, err := l.current()
	return err == nil && l.write(conn, n)
}

// run keeps the link until it is stopped.
func (l *peerLink) run() {
	pause := linkPauseMin
	lost := false // a connection was, and nobody heard that the member died
	for l.ctx.Err() == nil {
		conn, err := l.mesh.dial(l.ctx, l.who(), false)
		if err == nil {
			began := time.Now()
			l.attach(conn)
			select {
			case <-conn.Done():
			case <-l.ctx.Done():
			}
			l.detach(conn)
			lost, pause = true, linkPauseMin
			if time.Since(began) >= linkSteady {
				continue
			}
		} else {
			l.failed(err)
			if err := isTwin(err); err != nil {
				l.mesh.cfg.fatal(err)
			}
			if lost && refused(err) && !l.mesh.isHere(l.id) {
				l.group().Died(l.id)
				lost = false
			}
		}
		select {
		case <-l.hint:
			pause = linkPauseMin
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, linkPauseMax)
		case <-l.ctx.Done():
		}
	}
}

// attach puts a connection into use, behind what was kept for it.
func (l *peerLink) attach(conn *transport.Conn) {
	for {
		l.mu.Lock()
		kept := l.kept
		l.kept, l.keptLen = nil, 0
		if len(kept) == 0 {
			l.conn = conn
			l.mu.Unlock()
			break
		}
		l.mu.Unlock()
		l.notify(conn, kept) // what is lost is lost with the connection
	}
	l.mesh.cfg.log.Info("connected to a node", "node", l.who().Name)
}

func (l *peerLink) detach(conn *transport.Conn) {
	err := conn.Err()
	if err == nil {
		err = gearsfs.ErrClosed
	}
	l.mu.Lock()
	l.conn, l.why = nil, err
	l.mu.Unlock()
	if l.ctx.Err() == nil {
		l.group().Unreachable(l.id)
		l.mesh.cfg.log.Info("the connection to a node is lost", "node", l.who().Name, "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewellPause)
	defer cancel()
	conn.Shutdown(ctx) //nolint:errcheck // the connection is over either way
}

// failed notes why a connection can't be made, and tells when that is news.
func (l *peerLink) failed(err error) {
	l.mu.Lock()
	news := l.why == nil || l.why.Error() != err.Error()
	l.why = err
	l.mu.Unlock()
	if news && l.ctx.Err() == nil {
		l.mesh.cfg.log.Info("a node can't be reached", "node", l.who().Name, "error", err)
	}
}

// unreached is why a member can't be reached at any of its addresses.
type unreached struct{ errs []error }

func (u *unreached) Error() string {
	words := make([]string, len(u.errs))
	for i, err := range u.errs {
		words[i] = err.Error()
	}
	return strings.Join(words, "; ")
}

func (u *unreached) Unwrap() []error { return u.errs }

// refused reports whether nobody listens at any address: the process is gone.
func refused(err error) bool {
	u, ok := errors.AsType[*unreached](err)
	return ok && !slices.ContainsFunc(u.errs, func(err error) bool { return !errors.Is(err, transport.ErrRefused) })
}

// dial connects to a member at one of its addresses, unix sockets first, and
// agrees with it on who both are.
func (m *Mesh) dial(ctx context.Context, to gearsfs.Member, bulk bool) (*transport.Conn, error) {
	addrs, err := transport.ParseAddrs(to.Addrs)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(addrs, func(a, b transport.Addr) int { return -cmp.Compare(a.Network, b.Network) })
	failed := new(unreached)
	var absent []transport.Addr
	for _, addr := range addrs {
		conn, err := m.hail(ctx, addr, to.ID, bulk)
		switch {
		case err == nil:
			return m.nearer(ctx, conn, absent, to.ID, bulk), nil
		case errors.Is(err, transport.ErrRefused) && addr.Network == "unix":
			absent = append(absent, addr)
		}
		failed.errs = append(failed.errs, err)
	}
	return nil, failed
}

// nearer returns a connection to one of the unix sockets at which nobody listened
// before conn was made, if somebody does now, else conn. A node makes the socket in
// its data directory when it is about to serve, but who dials its other addresses
// while it starts waits for that in their backlog: the link would stay with TCP.
func (m *Mesh) nearer(ctx context.Context, conn *transport.Conn, absent []transport.Addr, to gearsfs.MemberID, bulk bool) *transport.Conn {
	for _, addr := range absent {
		near, err := m.hail(ctx, addr, to, bulk)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), farewellPause)
		defer cancel()
		conn.Shutdown(ctx) //nolint:errcheck // nothing is in flight
		return near
	}
	return conn
}

// hail connects to a member at one address.
func (m *Mesh) hail(ctx context.Context, addr transport.Addr, to gearsfs.MemberID, bulk bool) (*transport.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, hailTimeout, gearsfs.ErrNoNode.Because("%s does not answer", addr))
	defer cancel()
	cfg := Transport()
	cfg.TLS, cfg.OneWay = m.cfg.tls, !bulk
	conn, err := transport.Dial(ctx, addr, cfg)
	if err == nil {
		if err = m.introduce(ctx, conn, to, bulk); err != nil {
			cancel()           // no farewell to who is not the one
			conn.Shutdown(ctx) //nolint:errcheck // the connection is over either way
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// introduce says who this node is, and makes sure that the other end is the one
// that was meant.
func (m *Mesh) introduce(ctx context.Context, conn *transport.Conn, to gearsfs.MemberID, bulk bool) error {
	if who := conn.Peer(); who.Kind == transport.PeerUnix && who.UID != 0 && int(who.UID) != os.Geteuid() {
		return gearsfs.ErrAccess.Because("user %d listens there, not this node's", who.UID)
	}
	st := m.station.Load()
	resp, err := call(ctx, conn, m.greeting(to, bulk))
	if resp.GetJoined().GetRemoved() {
		m.expel(fmt.Sprintf("member %x", to))
	}
	if err != nil {
		return err
	}
	switch j := resp.Joined; {
	case j == nil:
		return gearsfs.ErrProtocol.Because("the answer does not say which node it is")
	case !bytes.Equal(j.VolumeId, st.volume[:]):
		return gearsfs.ErrForeign.Because("a node of volume %x answers, not one of %s", j.VolumeId, st.volume)
	case j.Member != uint64(to):
		return gearsfs.ErrNotMember.Because("member %x answers, not %x", j.Member, to)
	}
	if err := m.checkArrived(to, resp.Joined.Incarnation); err != nil {
		return err
	}
	m.met(to, resp.Joined.Incarnation)
	return nil
}

// greeting says who this node is to the one that it means to talk with.
func (m *Mesh) greeting(to gearsfs.MemberID, bulk bool) *wire.Request {
	st := m.station.Load()
	return &wire.Request{Kind: &wire.Request_Peer{Peer: &wire.Peer{
		VolumeId: st.volume[:], Member: st.self.Id, To: uint64(to), Self: st.self, Bulk: bulk,
		Format: persist.FormatVersion, Incarnation: m.incarnation,
	}}}
}
