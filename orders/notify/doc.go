// Package notify notifies customers by mail, and partners by webhook, when an order changes: two channels of one
// mechanism.
//
//	topic ──▶ cdc/inbox, a group for each channel         Sender, one or more for each channel
//	            BEGIN                                        lease a PENDING row        FOR UPDATE SKIP LOCKED
//	              inbox row                                  mail: render it            catalog away: wait, no attempt is counted
//	              notifications row:                         begin an attempt           a row of notification_attempts
//	              PENDING, or SUPPRESSED and why             SMTP or HTTP
//	            COMMIT, then the offset                      record the answer:         SENT, FAILED, or PENDING and later again
//
// Rules:
//
//   - A consumer never talks to a mail server. So no offset waits for a mail server that stalls.
//   - (order, channel, kind) is the natural key, and a notification that is SENT stays SENT. So events may arrive
//     twice, be replayed or be re-published, and still no notification is sent again after a success.
//   - An attempt is counted before it is made. There are at most 5. If the server may recover (SMTP 4xx, a failed
//     connection, HTTP 5xx, 408, 425 and 429), the next attempt follows after a random time that doubles. If the server
//     refuses the notification (SMTP 5xx to the mail, other HTTP 4xx), it is FAILED at once. An answer of a mail server
//     before it sees the mail (to greeting, TLS, AUTH) concerns our configuration, and the sender tries again after any
//     code.
//   - A sender makes FAILED notifications PENDING again, with all their attempts, until they are too old: in every
//     round those that ran out of attempts, and at doubling intervals those that were refused or could not be rendered.
//     `orders mail retry` does it at once.
//   - A mail is rendered as a whole, from the order's event, the customer's settings (orders database) and the
//     products' names (inventory database). The mail is stored exactly as it was sent.
//
// # When a mail is sent twice
//
// SMTP has no way to ask whether a server took a mail. If a sender dies after the server's 250 and before our COMMIT,
// or the connection dies before the sender reads the 250, the outcome of the attempt stays unknown. The lease expires,
// and the mail is sent once more under the same Message-ID, by which a mailbox may recognise it. For a webhook, the
// receiver avoids the repeat with the Idempotency-Key.
package notify
