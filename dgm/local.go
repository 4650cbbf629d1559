package dgm

import (
	"context"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// Local is a session of a Volume in this process: a Remote whose way leads to
// this node while that leads and to the one that does otherwise. What a
// mount only reads comes from this node's own replica, once that has applied
// all that this Local was answered before; Open, which the leader answers, brings
// the replica up to date with what others have done.
type Local struct {
	api
	vol    *Volume
	as     gearsfs.Caller
	remote *Remote
}

var _ Manager = (*Local)(nil)

// localCallsMax bounds what a Local has in flight; further calls wait.
const localCallsMax = 16 << 10

// homeTimeout bounds the first hello to the own volume, which waits for nothing.
const homeTimeout = time.Second

// Local opens a session for a client in this process. It does not wait for a
// leader: calls do, for up to gearsfs.SessionTTL. Until one is known the session
// has no id.
func (v *Volume) Local(c Client) (*Local, error) { return v.LocalWith(RemoteOptions{Client: c}) }

// LocalWith is Local, with GiveUp and Lasting of a Remote's options besides its
// Client.
func (v *Volume) LocalWith(o RemoteOptions) (*Local, error) {
	if v.isClosed() {
		return nil, gearsfs.ErrClosed
	}
	member, volume, _ := v.asMember()
	c := o.Client
	l := &Local{vol: v, as: c.Caller}
	l.api = api{cluster{l}}
	l.remote = makeRemote(RemoteOptions{Client: c, ClaimCaller: true, GiveUp: o.GiveUp, Lasting: o.Lasting}, homeRoute{v, c.Caller})
	l.remote.callsMax = localCallsMax
	l.remote.introduce = func(h *wire.Hello) {
		h.Member, h.VolumeId, h.ClaimChecked = uint64(member), volume, c.Caller.Checked
	}
	var first link
	if self, _, _ := v.leader(); self {
		ctx, cancel := context.WithTimeout(l.remote.ctx, homeTimeout)
		defer cancel()
		first, _ = l.remote.connect(ctx, &search{tries: 1}) //nolint:errcheck // else run makes the first link
	}
	go l.remote.run(first) // ends with Close, or with the volume
	return l, nil
}

// Session implements Manager.
func (l *Local) Session() gearsfs.SessionID { return l.remote.Session() }

// Close implements Manager.
func (l *Local) Close() error { return l.remote.Close() }

// call implements caller.
func (l *Local) call(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	if req.GetNode() != nil {
		return l.askNode(ctx, req)
	}
	if cmd := req.GetChange().GetCommand(); cmd != nil && l.vol.payloads.Bulky(cmd) {
		return l.callBulky(ctx, req)
	}
	q := req.GetQuery()
	if !nearby(q) {
		_, open := q.GetOp().(*wire.Query_Open)
		return l.ask(ctx, req, open)
	}
	if err := l.level(ctx); err != nil {
		return nil, err
	}
	if beginsList(q) && l.follows() {
		if _, err := l.ask(ctx, certain(&wire.Query{Op: &wire.Query_Sync{Sync: true}}), true); err != nil {
			return nil, err
		}
	}
	resp, err := l.vol.readNear(l.as, q)
	if errors.Is(err, gearsfs.ErrNotFound) && byName(q) && l.follows() {
		return l.ask(ctx, certain(&wire.Query{Op: q.Op}), true)
	}
	return resp, err
}

// Read implements Content.
func (l *Local) Read(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n int, buf []byte) ([]byte, error) {
	r, err := readOp(ino, pos, n)
	if err != nil {
		return nil, err
	}
	if err := l.level(ctx); err != nil {
		return nil, err
	}
	if !l.vol.enter() {
		return nil, gearsfs.ErrClosed
	}
	defer l.vol.leave()
	return l.vol.payloads.Content(l.vol.busy, l.as, r, buf)
}

// Sync implements Content.
func (l *Local) Sync(ctx context.Context) error {
	if !l.vol.alone() {
		return l.api.Sync(ctx)
	}
	if !l.vol.enter() {
		return gearsfs.ErrClosed
	}
	defer l.vol.leave()
	return l.vol.group.Sync()
}

// level waits until the own replica shows what this session was told before.
func (l *Local) level(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.succeeds() {
		if _, err := l.ask(ctx, certain(&wire.Query{Op: &wire.Query_Sync{Sync: true}}), true); err != nil {
			return err
		}
	}
	return l.catchUp(ctx)
}

// callBulky asks for a change whose payloads are stored here first: from then on
// they are where the leader and the others have them.
func (l *Local) callBulky(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	if !l.vol.alone() { // else the upload waits for nobody
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(l.remote.ctx, cancel)()
	}
	upload := ctx
	if l.remote.begun(ctx, req) {
		upload = l.remote.ctx
	}
	extents, err := l.vol.upload(upload, req.GetChange().GetCommand())
	if err != nil {
		if l.remote.ctx.Err() != nil {
			err = gearsfs.ErrClosed
		}
		return nil, err
	}
	resp, err := l.ask(ctx, req, false)
	l.vol.payloads.Unused(extents, err)
	return resp, err
}

// succeeds says that the session goes on after the death of a process that may
// have shown more than the own replica has read from its log again.
func (l *Local) succeeds() bool {
	return l.remote.opts.Lasting != nil && l.remote.newest.Load() == 0
}

// follows says that another node leads, so that its clients may have been told
// of what the own replica does not have yet.
func (l *Local) follows() bool {
	self, _, _ := l.vol.leader()
	return !self
}

// certain is a request for what is certain to be seen by all.
func certain(q *wire.Query) *wire.Request {
	return &wire.Request{Kind: &wire.Request_Query{Query: q}}
}

// ask asks the node that leads. level waits until the own replica has all that
// the answer shows.
func (l *Local) ask(ctx context.Context, req *wire.Request, level bool) (*wire.Response, error) {
	resp, err := l.remote.call(ctx, req)
	if level && err == nil {
		err = l.catchUp(ctx)
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// byName says whether a query looks for a name.
func byName(q *wire.Query) bool {
	switch q.GetOp().(type) {
	case *wire.Query_Lookup, *wire.Query_Resolve:
		return true
	}
	return false
}

// beginsList says whether a query lists a directory from its beginning.
func beginsList(q *wire.Query) bool {
	list := q.GetReadDir()
	return list != nil && list.After == ""
}

// nearby says whether the own replica answers a query: all that neither wait
// nor change anything, but those of the API that show what is certain.
func nearby(q *wire.Query) bool {
	switch q.GetOp().(type) {
	case *wire.Query_Lookup, *wire.Query_Resolve, *wire.Query_GetAttr, *wire.Query_ReadDir, *wire.Query_Readlink,
		*wire.Query_Parent, *wire.Query_GetXattr, *wire.Query_ListXattr, *wire.Query_StatFs, *wire.Query_StatFsAt,
		*wire.Query_Seek, *wire.Query_Status, *wire.Query_Remotes:
		return true
	}
	return false
}

// catchUp waits until the own replica has applied all that the session was
// answered: gearsfs.ErrNoNode where that takes longer than calls wait for a node.
func (l *Local) catchUp(ctx context.Context) error {
	r := l.remote
	newest := r.newest.Load()
	if newest <= r.reached.Load() {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, r.opts.GiveUp)
	defer cancel()
	if err := l.vol.awaitApplied(limited, gearsfs.Index(newest)); err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = gearsfs.ErrNoNode.Because("this node's replica has not caught up within %v", r.opts.GiveUp)
		}
		return err
	}
	raise(&r.reached, newest)
	return nil
}

// askNode asks this node, or where only the one that leads can answer, that one.
func (l *Local) askNode(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	resp, err := insist(ctx, l.remote.opts.GiveUp, req, func(ctx context.Context) (*wire.Response, error) {
		resp, err := l.askHere(ctx, req.GetNode())
		if resp == nil || resp.Leader == "" || !errors.Is(err, gearsfs.ErrNotLeader) {
			return resp, err
		}
		_, _, tlsConfig := l.vol.asMember()
		return askAt(ctx, resp.Leader, RemoteOptions{TLS: tlsConfig}, req)
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (l *Local) askHere(ctx context.Context, op *wire.NodeOp) (*wire.Response, error) {
	out := make(chan *wire.Response, 1)
	l.vol.nodeOp(false, l.as, op, func(resp *wire.Response) { out <- resp })
	select {
	case resp := <-out:
		return resp, errorOf(resp)
	case <-l.remote.ctx.Done():
		return nil, gearsfs.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Watch implements Node: it tells what this node's own replica applies, so what
// is told is there.
func (l *Local) Watch(ctx context.Context, started func(), changed func([]gearsfs.Change)) error {
	begun, err := l.nextChanges(ctx, 0)
	if err != nil {
		return err
	}
	id := begun.Number
	defer l.vol.endWatch(id)
	started()
	for {
		resp, err := l.nextChanges(ctx, id)
		if err != nil {
			return err
		}
		changed(changedFromWire(resp.Changed))
	}
}

func (l *Local) nextChanges(ctx context.Context, id uint64) (*wire.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := make(chan *wire.Response, 1)
	c := l.vol.watchNear(l.Session, id, func(resp *wire.Response) { out <- resp })
	select {
	case resp := <-out:
		return outcome(remoteOutcome{resp: resp})
	case <-ctx.Done():
	case <-l.remote.stopped:
	}
	if c != nil {
		c.cancel(gearsfs.ErrCancelled)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, gearsfs.ErrClosed
}

// homeRoute leads to this process's own volume while that leads, else to the
// node that does.
type homeRoute struct {
	vol *Volume
	as  gearsfs.Caller
}

func (homeRoute) told(*wire.Response) {} // the volume knows by itself

// connect implements route. It waits for a leader.
func (hr homeRoute) connect(ctx context.Context, s *search) (link, *wire.Response, error) {
	for failures := 1; ; failures++ {
		if hr.vol.isClosed() {
			return nil, nil, gearsfs.ErrClosed
		}
		self, addrs, changed := hr.vol.leader()
		var l link
		var resp *wire.Response
		err := error(gearsfs.ErrNoNode.Because("no node leads the volume"))
		switch {
		case self:
			l, resp, err = hr.home(ctx, s)
		case addrs != "":
			l, resp, err = hr.abroad(ctx, s, addrs, changed)
		}
		if err == nil || errors.Is(err, gearsfs.ErrClosed) && hr.vol.isClosed() {
			return l, resp, err
		}
		s.tell(err)
		if s.tries > 0 || ctx.Err() != nil {
			return nil, nil, err
		}
		var again <-chan time.Time
		if self || addrs != "" {
			again = time.After(backoff(failures))
		}
		select {
		case <-changed:
			failures = 0
		case <-again:
		case <-ctx.Done():
			return nil, nil, err
		case <-hr.vol.root.Done():
		}
	}
}

// home makes a link to the own volume.
func (hr homeRoute) home(ctx context.Context, s *search) (link, *wire.Response, error) {
	in, err := hr.vol.inside(hr.as)
	if err != nil {
		return nil, nil, err
	}
	l := &insideLink{in: in, lossy: newLossy()}
	l.loseWith(in.lost())
	resp, err := s.greetTimely(ctx, l)
	if err != nil {
		if s.part != nil {
			s.part(l)
		}
		l.close()
		return nil, nil, err
	}
	return l, resp, nil
}

// abroad makes a link to the node that leads, until another does.
func (hr homeRoute) abroad(ctx context.Context, s *search, addrs string, changed <-chan struct{}) (link, *wire.Response, error) {
	_, _, tlsConfig := hr.vol.asMember()
	d, err := newDialRoute(addrs, RemoteOptions{TLS: tlsConfig})
	if err != nil {
		return nil, nil, err
	}
	d.volume = hr.vol.ID()
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	s.owned.Go(func() {
		select {
		case <-changed:
		case <-hr.vol.root.Done():
		case <-trying.Done():
		}
		cancel()
	})
	l, resp, err := d.connect(trying, s)
	if err != nil {
		return nil, nil, err
	}
	s.owned.Go(func() { hr.follow(l, addrs, changed) })
	return &vouchedLink{l, hr.vol.group.Vouch}, resp, nil
}

// vouchedLink is a link to the node that leads, from one that follows it, which
// spares that to ask another node whether it still does before it answers a query.
// What goes on to another volume is not vouched for: the members there have the same
// numbers.
type vouchedLink struct {
	link
	vouch func() replica.Vouch
}

func (l *vouchedLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	if req.GetQuery() != nil && req.Remote == "" {
		v := l.vouch()
		req.Voucher, req.VouchTerm = uint64(v.Member), v.Term
	}
	return l.link.start(req, done)
}

// follow makes a link lost when another node leads than the one that it leads
// to, which that may not know: it may be cut off.
func (hr homeRoute) follow(l link, addrs string, changed <-chan struct{}) {
	for {
		select {
		case <-l.done():
			return
		case <-hr.vol.root.Done():
			l.lose()
			return
		case <-changed:
		}
		var self bool
		var now string
		self, now, changed = hr.vol.leader()
		if self || now != "" && now != addrs {
			l.lose()
			return
		}
	}
}

// insideLink is a link to the own volume.
type insideLink struct {
	in *inside
	lossy
}

// start brings a change through the log on this goroutine, where the replica has
// nothing else to do: who asks waits for it, and no other is woken.
func (l *insideLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	group := l.in.peer.vol.group
	group.Enter()
	defer group.Leave()
	return l.in.start(req, done)
}

func (l *insideLink) lends() bool { return true }
func (l *insideLink) why() error {
	return gearsfs.ErrNoNode.Because("this node does not lead any more")
}

func (l *insideLink) close() {
	l.lose()
	l.in.close()
}
