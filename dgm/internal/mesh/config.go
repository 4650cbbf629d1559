package mesh

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// Config says what a Mesh knows of its node.
type Config struct {
	// Identity says who this node is, and of which volume; it is asked by Begin.
	Identity func() (self *wire.Member, volume persist.ID)
	TLS      *tls.Config
	Log      *slog.Logger
	Roster   Roster
	// Data is what snapshots are made of, and go to.
	Data *persist.Data
	// SnapshotBytesPerSecond bounds what this node sends to those that catch up.
	SnapshotBytesPerSecond uint64
	// VerifyEvery is how often the replicas are compared while this node leads;
	// where it is not above 0 they never are by themselves.
	VerifyEvery time.Duration
	// Applied is the index of the last entry in the state; Replace has the state
	// machine go on with what swap brings, on the goroutine that applies.
	Applied func() uint64
	Replace func(swap func() error) error
	// Propose puts a command into the log and returns when it is applied here.
	Propose func(context.Context, *wire.Command) error
	Leads   func() bool
	// Fatal is told, possibly more than once, where another process runs as this
	// node: this one must end.
	Fatal func(error)
}

// New returns a Mesh that connects to nobody before Begin.
func New(cfg Config) *Mesh {
	m := makeMesh(meshConfig{identity: cfg.Identity, tls: cfg.TLS, log: cfg.Log, roster: cfg.Roster, fatal: cfg.Fatal})
	m.snapshots = makeSnapshots(snapshotsConfig{
		data: cfg.Data, mesh: m, log: cfg.Log, pace: newPace(cfg.SnapshotBytesPerSecond),
		applied: cfg.Applied, replace: cfg.Replace,
	})
	m.verifier = makeVerifier(verifierConfig{
		every: cfg.VerifyEvery, log: cfg.Log, mesh: m, pace: newPace(verifyBytesPerSecond),
		propose: cfg.Propose, leads: cfg.Leads, applied: cfg.Applied, size: cfg.Data.State.Bytes,
	})
	return m
}

// Snapshots are those of this node's state, and of others' for it.
func (m *Mesh) Snapshots() replica.Snapshots { return m.snapshots }

// Observe takes the state as of an entry that asks for its hash, as a
// file.Observer does.
func (m *Mesh) Observe(index uint64, state file.View) { m.verifier.observe(index, state) }

// Compare has all replicas compared; this node must lead. Errors:
// gearsfs.ErrDamaged with the names of those that differ; gearsfs.ErrNoNode with
// those that could not be compared, where the others are the same; gearsfs.ErrBusy
// while it is being done; gearsfs.ErrNotLeader.
func (m *Mesh) Compare(ctx context.Context) error { return m.verifier.compare(ctx) }

// AnswerVerify answers what a leader asks for when it compares.
func (m *Mesh) AnswerVerify(ctx context.Context, op *wire.NodeOp) (*wire.Response, error) {
	return m.verifier.answer(ctx, op)
}
