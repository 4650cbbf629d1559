package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// How the replicas are compared.
const (
	verifyBytesPerSecond = 32 << 20         // of the state that a node reads for it
	verifyPatience       = 10 * time.Minute // for a node's hash, and twice what reading takes
	verdictTimeout       = 5 * time.Second  // for a node to hear of the outcome
	hashesKept           = 8
	hashLook             = time.Second // for an entry that was passed over
)

// verifierConfig is what a verifier knows of its node.
type verifierConfig struct {
	every time.Duration // at the leader; <= 0 is never
	log   *slog.Logger
	mesh  *Mesh
	pace  *pace
	// propose puts a command into the log and returns when it is applied here.
	propose func(context.Context, *wire.Command) error
	leads   func() bool
	applied func() uint64
	size    func() uint64 // bytes of the state
}

// verifier finds out whether the replicas are the same. The leader puts an entry
// into the log; every replica hashes its state as of that entry, in the
// background and paced, and remembers the hash; the leader asks for all of them,
// and tells those whose state is another.
type verifier struct {
	cfg   verifierConfig
	ctx   context.Context
	stop  context.CancelFunc
	owned sync.WaitGroup

	mu      sync.Mutex // not held over I/O or a call out
	closed  bool
	asking  bool          // a comparison is under way
	hashing bool          // a goroutine is
	now     uint64        // the entry that is hashed; 0 is none
	next    *hashJob      // waits for that
	hashes  []stateHash   // by rising index; the last ones
	news    chan struct{} // closed, and replaced, when there is one more
	trouble string        // for the status
}

// hashJob is a state to be hashed.
type hashJob struct {
	index uint64
	state file.View
}

// stateHash is the hash of the state as of an entry, or why there is none.
type stateHash struct {
	index uint64
	sum   []byte
	err   error
}

func makeVerifier(cfg verifierConfig) *verifier {
	x := &verifier{cfg: cfg, news: make(chan struct{})}
	x.ctx, x.stop = context.WithCancel(context.Background())
	return x
}

// begin compares now and then from now on.
func (x *verifier) begin() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.closed && x.cfg.every > 0 {
		x.owned.Go(x.regularly)
	}
}

// observe takes the state as of an entry that asks for its hash. It is called
// by who applies.
func (x *verifier) observe(index uint64, state file.View) {
	x.mu.Lock()
	skipped := x.next
	switch {
	case x.closed:
		skipped = &hashJob{index, state}
	case x.hashing:
		x.next = &hashJob{index, state}
	default:
		x.next, x.hashing = &hashJob{index, state}, true
		x.owned.Go(x.hashAll)
	}
	x.mu.Unlock()
	if skipped != nil {
		err := skipped.state.Close()
		x.note(stateHash{skipped.index, nil, errors.Join(gearsfs.ErrBusy.Because("the node was still busy with an older comparison"), err)})
	}
}

// hashAll hashes what there is to hash.
func (x *verifier) hashAll() {
	for {
		x.mu.Lock()
		job := x.next
		x.next, x.now = nil, 0
		if job == nil {
			x.hashing = false
			x.mu.Unlock()
			return
		}
		x.now = job.index
		x.mu.Unlock()
		sum, err := file.HashState(x.ctx, job.state, func(n int) error { return x.cfg.pace.wait(x.ctx, n) })
		err = errors.Join(err, job.state.Close())
		if err != nil && x.ctx.Err() == nil {
			x.cfg.log.Error("the state can't be read", "error", err)
		}
		x.note(stateHash{job.index, sum, err})
	}
}

func (x *verifier) note(h stateHash) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hashes = append(x.hashes, h)
	slices.SortStableFunc(x.hashes, func(a, b stateHash) int { return int(int64(a.index) - int64(b.index)) })
	if len(x.hashes) > hashesKept {
		x.hashes = slices.Delete(x.hashes, 0, 1)
	}
	close(x.news)
	x.news = make(chan struct{})
}

// await waits for the hash as of an entry. gearsfs.ErrNotFound: there will be
// none.
func (x *verifier) await(ctx context.Context, index uint64) ([]byte, error) {
	ticker := time.NewTicker(hashLook)
	defer ticker.Stop()
	for {
		passed := x.cfg.applied() > index // so observe was called for it, if ever
		x.mu.Lock()
		i := slices.IndexFunc(x.hashes, func(h stateHash) bool { return h.index == index })
		if i >= 0 {
			h := x.hashes[i]
			x.mu.Unlock()
			return h.sum, h.err
		}
		due := x.now == index || x.next != nil && x.next.index == index
		news := x.news
		x.mu.Unlock()
		if passed && !due {
			return nil, gearsfs.ErrNotFound.Because("the node has no hash of its state as of entry %d: it was away or is new", index)
		}
		select {
		case <-news:
		case <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-x.ctx.Done():
			return nil, gearsfs.ErrClosed
		}
	}
}

// first is the first entry behind after whose hash is asked for; 0 is none.
func (x *verifier) first(after uint64) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	asked := []uint64{x.now}
	if x.next != nil {
		asked = append(asked, x.next.index)
	}
	for _, h := range x.hashes {
		asked = append(asked, h.index)
	}
	slices.Sort(asked)
	i, _ := slices.BinarySearch(asked, after+1)
	if i == len(asked) {
		return 0
	}
	return asked[i]
}

// regularly compares while this node leads and something has happened.
func (x *verifier) regularly() {
	ticker := time.NewTicker(x.cfg.every)
	defer ticker.Stop()
	var last uint64
	for {
		select {
		case <-ticker.C:
		case <-x.ctx.Done():
			return
		}
		members, err := x.cfg.mesh.cfg.roster.Members()
		if err != nil || len(members) < 2 || !x.cfg.leads() || x.cfg.applied() <= last {
			continue
		}
		if err := x.compare(x.ctx); err != nil && x.ctx.Err() == nil {
			x.cfg.log.Warn("the nodes are not known to be the same", "error", err)
		}
		last = x.cfg.applied()
	}
}

// compare has all replicas compared. Errors: gearsfs.ErrDamaged with the names
// of those that differ; gearsfs.ErrNoNode with those that could not be compared,
// where the others are the same; gearsfs.ErrBusy while it is being done;
// gearsfs.ErrNotLeader.
func (x *verifier) compare(ctx context.Context) error {
	x.mu.Lock()
	busy := x.asking
	x.asking = true
	x.mu.Unlock()
	if busy {
		return gearsfs.ErrBusy.Because("the nodes are being compared already")
	}
	defer func() {
		x.mu.Lock()
		x.asking = false
		x.mu.Unlock()
	}()
	patience := verifyPatience + 2*time.Duration(x.cfg.size()/verifyBytesPerSecond)*time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before := x.cfg.applied()
	if err := x.cfg.propose(ctx, &wire.Command{Op: &wire.Command_Verify{Verify: &wire.Verify{}}}); err != nil {
		return err
	}
	index := x.first(before)
	if index == 0 {
		return gearsfs.ErrNotLeader.Because("the entry that asks for the comparison is lost")
	}
	members, err := x.cfg.mesh.cfg.roster.Members()
	if err != nil {
		return err
	}
	v := judge(x.collect(ctx, members, index))
	v.index = index
	x.publish(members, v)
	return v.err()
}

// found is what a member's state is like.
type found struct {
	member gearsfs.Member
	sum    []byte
	err    error
}

// collect asks all members for their hash.
func (x *verifier) collect(ctx context.Context, members []gearsfs.Member, index uint64) []found {
	all := make([]found, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() {
			all[i].member = m
			all[i].sum, all[i].err = x.hashOf(ctx, m.ID, index)
		})
	}
	wait.Wait()
	return all
}

func (x *verifier) hashOf(ctx context.Context, id gearsfs.MemberID, index uint64) ([]byte, error) {
	if id == x.cfg.mesh.station.Load().id() {
		return x.await(ctx, index)
	}
	resp, err := x.cfg.mesh.Ask(ctx, id, &wire.NodeOp{Op: &wire.NodeOp_StateHash{StateHash: index}})
	if err != nil {
		return nil, err
	}
	if len(resp.Data) == 0 {
		return nil, gearsfs.ErrProtocol.Because("the answer has no hash")
	}
	return resp.Data, nil
}

// verdict is the outcome of a comparison.
type verdict struct {
	index   uint64
	differ  []gearsfs.Member // from the majority, where there is one, else all
	right   []gearsfs.Member // the majority
	missing []string         // who was not compared, and why
}

// judge says who differs: whose state is not that of more than half of those
// that were compared.
func judge(all []found) verdict {
	var v verdict
	groups := make(map[string][]gearsfs.Member)
	compared := 0
	for _, f := range all {
		if f.err != nil {
			v.missing = append(v.missing, fmt.Sprintf("%s (%v)", f.member.Name, f.err))
			continue
		}
		compared++
		groups[string(f.sum)] = append(groups[string(f.sum)], f.member)
	}
	for _, group := range groups {
		if 2*len(group) > compared {
			v.right = group
		}
	}
	for _, f := range all {
		if f.err == nil && !slices.ContainsFunc(v.right, func(m gearsfs.Member) bool { return m.ID == f.member.ID }) {
			v.differ = append(v.differ, f.member)
		}
	}
	return v
}

func names(members []gearsfs.Member) string {
	words := make([]string, len(members))
	for i, m := range members {
		words[i] = m.Name
	}
	return strings.Join(words, ", ")
}

// trouble says what differs, "" where nothing does.
func (v *verdict) trouble() string {
	switch {
	case len(v.differ) == 0:
		return ""
	case len(v.right) == 0:
		return fmt.Sprintf("the states of %s differ as of entry %d, and none has a majority", names(v.differ), v.index)
	}
	return fmt.Sprintf("the state of %s differs from that of %s as of entry %d: remove it and let it join with new data", names(v.differ), names(v.right), v.index)
}

func (v *verdict) err() error {
	missing := ""
	if len(v.missing) > 0 {
		missing = "not compared: " + strings.Join(v.missing, ", ")
	}
	switch trouble := v.trouble(); {
	case trouble != "" && missing != "":
		return gearsfs.ErrDamaged.Because("%s; %s", trouble, missing)
	case trouble != "":
		return gearsfs.ErrDamaged.Because("%s", trouble)
	case missing != "":
		return gearsfs.ErrNoNode.Because("%s", missing)
	}
	return nil
}

// publish tells this node, and those that differ, what was found, and the
// others that all is well with them.
func (x *verifier) publish(members []gearsfs.Member, v verdict) {
	trouble := v.trouble()
	x.judged(&wire.Verdict{Index: v.index, Trouble: trouble})
	ctx, cancel := context.WithTimeout(x.ctx, verdictTimeout)
	defer cancel()
	var wait sync.WaitGroup
	for _, m := range members {
		if m.ID == x.cfg.mesh.station.Load().id() {
			continue
		}
		told := &wire.Verdict{Index: v.index}
		if slices.ContainsFunc(v.differ, func(o gearsfs.Member) bool { return o.ID == m.ID }) {
			told.Trouble = trouble
		}
		wait.Go(func() {
			if _, err := x.cfg.mesh.Ask(ctx, m.ID, &wire.NodeOp{Op: &wire.NodeOp_Verdict{Verdict: told}}); err != nil && told.Trouble != "" {
				x.cfg.log.Warn("a node that differs could not be told", "node", m.Name, "error", err)
			}
		})
	}
	wait.Wait()
}

// judged takes what the leader has found.
func (x *verifier) judged(v *wire.Verdict) {
	x.mu.Lock()
	x.trouble = v.Trouble
	x.mu.Unlock()
	if v.Trouble != "" {
		x.cfg.log.Error("the replicas of the volume are not the same", "trouble", v.Trouble, "index", v.Index)
	} else {
		x.cfg.log.Info("the replicas were compared", "index", v.Index)
	}
}

// Warnings are for the node's status.
func (x *verifier) warnings() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.trouble == "" {
		return nil
	}
	return []string{x.trouble}
}

// close ends what is under way.
func (x *verifier) close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.stop()
	x.owned.Wait()
	if x.next != nil { // nobody else is left
		x.next.state.Close() //nolint:errcheck // it was only read
	}
}

// answer serves what a leader asks for when it compares.
func (x *verifier) answer(ctx context.Context, op *wire.NodeOp) (*wire.Response, error) {
	if told := op.GetVerdict(); told != nil {
		x.judged(told)
		return &wire.Response{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, verifyPatience)
	defer cancel()
	sum, err := x.await(ctx, op.GetStateHash())
	if err != nil {
		return nil, err
	}
	return &wire.Response{Data: sum}, nil
}
