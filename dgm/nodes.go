package dgm

import (
	"context"

	"github.com/gearsfs/gearsfs/dgm/internal/mesh"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// newMesh makes what connects this node with the other members of the volume.
func newMesh(v *Volume) *mesh.Mesh {
	return mesh.New(mesh.Config{
		Identity: func() (*wire.Member, persist.ID) {
			id := v.cfg.Data.Identity()
			return &wire.Member{Id: uint64(id.Member), Name: id.Name, NodeId: id.Node[:], Addrs: v.cfg.Addrs}, id.Volume
		},
		TLS: v.cfg.TLS, Log: v.log, Roster: v.machine, Data: v.cfg.Data,
		SnapshotBytesPerSecond: uint64(v.cfg.SnapshotBytesPerSecond), VerifyEvery: v.cfg.VerifyEvery,
		Applied: func() uint64 { index, _ := v.machine.Applied(); return index },
		Replace: v.replaceState, Propose: v.proposeVerify,
		Leads: func() bool { return v.tenure.Load() != nil },
		Fatal: v.fatal,
	})
}

// Verify implements file.Observer.
func (v *Volume) Verify(index uint64, state file.View) { v.mesh.Observe(index, state) }

// proposeVerify returns when the entry that asks all replicas for their hash is
// applied here.
func (v *Volume) proposeVerify(ctx context.Context, cmd *wire.Command) error {
	t := v.tenure.Load()
	if t == nil {
		return errNotLeader
	}
	done := make(chan error, 1)
	t.order(nil, cmd, func(_ *wire.Answer, err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
