// Package payload keeps the large payloads of a volume outside of its log and its
// state: a Keeper is one node's part in it. Commands and rows carry extents, which
// say where the bytes are; the bytes are in a block.Store at each replica.
//
//	a change comes   Upload      its bytes come to the disks of a majority
//	                             (spread.go; of small ones together, shipment.go),
//	                             extents take their places
//	it is answered   Unused      and what came to nothing is given back
//	it is applied    Named       what this node lacks comes from others (heal.go)
//	rows go          Freed, Durable  and with the entry on disk their pages
//	somebody reads   Content, Fill   here, or from another node where need be
//	in peace         Begin       sweeps what crashed uploads have left (sweep.go,
//	                             pending.go), reads all now and then (check.go)
//
// A Keeper knows the tables of its node, and asks about nodes and the group only
// through Node and Members. Other Keepers reach it through Serve.
package payload
