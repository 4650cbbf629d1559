package dgm

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// JoinConfig says which node is to join a volume.
type JoinConfig struct {
	// Data is the node's new data directory, which no Volume has open.
	Data *persist.Data
	// Addrs is where the other nodes reach this one, separated by commas.
	Addrs string
	// TLS is how nodes are dialled over TCP, nil for plainly.
	TLS *tls.Config
	// Log takes what is worth a line; nil is slog.Default().
	Log *slog.Logger
}

// Join has a node that has no data yet added to the volume that any of the nodes
// at addrs is one of, and writes down which member it is from then on: OpenVolume
// goes on from there. The node's data does nothing for the volume before it has
// caught up. It waits for a node that leads, as long as ctx allows but at most a
// minute. Where Join failed it may be called again: a node that was added before
// is added once. Data that has joined already is left as it is; only where the
// node that leads is found at once, and would not have it, that is told.
//
// Errors: gearsfs.ErrForeign, the data has a volume of its own or another's;
// gearsfs.ErrExists, a node of the volume has the same name;
// gearsfs.ErrNotMember, the node was removed before; gearsfs.ErrFormat, the
// volume is of another format; gearsfs.ErrAccess, the nodes don't trust this
// one; gearsfs.ErrNotLeader, no node leads; and those of DialNode.
func Join(ctx context.Context, addrs string, cfg JoinConfig) error {
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	id := cfg.Data.Identity()
	switch {
	case id.Member != 0:
		return stillWelcome(ctx, addrs, cfg, id)
	case id.Volume != (persist.ID{}):
		return gearsfs.ErrForeign.Because("the data of %s belongs to volume %s: a node joins with new data", id.Name, id.Volume)
	case cfg.Data.Log.Last() != 0:
		return gearsfs.ErrForeign.Because("the data of %s holds a volume of its own: a node joins with new data", id.Name)
	}
	member := memberID(id.Node)
	if err := checkJoiner(member, id, cfg.Addrs); err != nil {
		return err
	}
	joined, err := askToJoin(ctx, addrs, cfg, &wire.Member{
		Id: uint64(member), Name: id.Name, NodeId: id.Node[:], Addrs: cfg.Addrs,
	}, log)
	if err != nil {
		return err
	}
	var volume persist.ID
	copy(volume[:], joined.VolumeId)
	if err := cfg.Data.SetMember(volume, member); err != nil {
		return fmt.Errorf("note the volume that was joined: %w", err)
	}
	log.Info("joined a volume", "volume", joined.Volume, "id", volume, "member", member.Hex())
	return nil
}

// welcomePatience is how long a member that starts again may wait to hear
// whether it is one.
const welcomePatience = time.Second

// stillWelcome asks once, about data that is a member, whether it is one of the
// volume that is to be joined. Without an answer it may be: all nodes of the
// volume may be starting.
func stillWelcome(ctx context.Context, addrs string, cfg JoinConfig, id persist.Identity) error {
	ctx, cancel := context.WithTimeout(ctx, welcomePatience)
	defer cancel()
	opts := RemoteOptions{TLS: cfg.TLS}
	node, err := DialNode(ctx, addrs, opts)
	if err != nil {
		return nil
	}
	defer node.Close() //nolint:errcheck // always nil
	req := &wire.Request{Kind: &wire.Request_Node{Node: &wire.NodeOp{Op: &wire.NodeOp_Join{Join: &wire.Join{
		Self:     &wire.Member{Id: uint64(id.Member), Name: id.Name, NodeId: id.Node[:], Addrs: cfg.Addrs},
		VolumeId: id.Volume[:], Format: persist.FormatVersion,
	}}}}}
	resp, err := node.ask(ctx, req)
	if errors.Is(err, gearsfs.ErrNotLeader) && resp.GetLeader() != "" {
		_, err = askAt(ctx, resp.Leader, opts, req)
	}
	if errors.Is(err, gearsfs.ErrForeign) || errors.Is(err, gearsfs.ErrNotMember) {
		return err
	}
	return nil
}

func checkJoiner(member gearsfs.MemberID, id persist.Identity, addrs string) error {
	switch {
	case member <= founder || member >= reserved:
		return gearsfs.ErrInvalid.Because("the id of the data of %s is none for a member: begin with new data", id.Name)
	case id.Name == "":
		return gearsfs.ErrInvalid.Because("a node that joins needs a name")
	case addrs == "":
		return gearsfs.ErrInvalid.Because("a node that joins needs an address where the others reach it")
	}
	return nil
}

// askToJoin asks the node that leads.
func askToJoin(ctx context.Context, addrs string, cfg JoinConfig, self *wire.Member, log *slog.Logger) (*wire.Joined, error) {
	node, err := DialNode(ctx, addrs, RemoteOptions{TLS: cfg.TLS, OnRetry: func(err error) {
		log.Info("the volume can't be joined yet", "error", err)
	}})
	if err != nil {
		return nil, err
	}
	resp, err := node.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Join{Join: &wire.Join{
		Self: self, Format: persist.FormatVersion,
	}}})
	if err = errors.Join(err, node.Close()); err != nil {
		return nil, err
	}
	switch j := resp.Joined; {
	case j == nil || len(j.VolumeId) != len(persist.ID{}) || bytes.Equal(j.VolumeId, make([]byte, len(persist.ID{}))) || j.Member != self.Id:
		return nil, gearsfs.ErrProtocol.Because("the answer does not say which volume was joined")
	case j.Format != persist.FormatVersion:
		return nil, gearsfs.ErrFormat.Because("the volume's data are of format version %d, this program's is %d", j.Format, persist.FormatVersion)
	}
	return resp.Joined, nil
}
