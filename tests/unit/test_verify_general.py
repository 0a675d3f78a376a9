import pytest
from observations import ADDRESS, CLOSED, HOST, SILENT, dialogue, judge, reply, told

from gatepost.verify.checks import general, verifier
from gatepost.verify.model import Severity, Verdict
from gatepost.verify.registry import NotObserved
from gatepost.verify.wire.mail import Mail
from gatepost.verify.wire.probe import Failed, Told
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Ended, Failure

CLEAR, VERBS, MAIL = general.CLEAR, general.VERBS, general.MAIL
EHLO = f"250-{HOST}\n250-PIPELINING\n250-SIZE 10485760\n250-ENHANCEDSTATUSCODES\n250-8BITMIME\n250-DSN\n250 SMTPUTF8"
EHLO_CLEAR = EHLO.replace("250-ENH", "250-STARTTLS\n250-ENH")
BYE = "221 2.0.0 Bye"
UNKNOWN = "500 5.5.2 Error: command not recognized"
GOOD_VERBS = {
    "NOOP": "250 2.0.0 Ok",
    "RSET": "250 2.0.0 Ok",
    "VRFY someone": "502 5.5.1 VRFY command is disabled",
    "VRFY nobody": "502 5.5.1 VRFY command is disabled",
    "EXPN": "502 5.5.2 Error: command not recognized",
    "ETRN": "554 5.7.1 <example.test>: Etrn command rejected: Access denied",
    "XCLIENT": "550 5.7.0 Error: insufficient authorization",
    "XFORWARD": "550 5.7.0 Error: insufficient authorization",
    "TURN": UNKNOWN,
    "HELP": UNKNOWN,
    "BURL": UNKNOWN,
    "unknown verb": UNKNOWN,
    "QUIT": BYE,
}
GOOD_MAIL = {
    "BODY=BINARYMIME": "555 5.5.4 Unsupported option: BODY=BINARYMIME",
    "REQUIRETLS": "555 5.5.4 Unsupported option: REQUIRETLS",
    "FOO=bar": "555 5.5.4 Unsupported option: FOO=bar",
    "DSN": ("250 2.1.0 Ok", "250 2.1.5 Ok"),
    "SIZE": "552 5.3.4 Message size exceeds file system imposed limit",
    "DATA": ("250 2.1.0 Ok", "250 2.1.5 Ok", "354 End data", "552 5.3.4 Error: message file too big"),
}


def reached(answer=f"220 {HOST} ESMTP", *, connected=True, more=b"", second=f"220 {HOST} ESMTP", implicit=False):
    first, other = (reply(a) if isinstance(a, str) else a for a in (answer, second))
    return Reached(0.001, connected, implicit, first, more, other, (), implicit)


def verbs(tls=EHLO, **changes):
    return dialogue(GOOD_VERBS | {k.replace("_", " "): v for k, v in changes.items()}, tls=tls)


def clear(ehlo=EHLO_CLEAR, **changes):
    return dialogue({"NOOP": "250 2.0.0 Ok", "RSET": "250 2.0.0 Ok", "QUIT": BYE} | changes, clear=ehlo)


def mail(limit=10485760, **changes):
    cases = GOOD_MAIL | {k.replace("__", "="): v for k, v in changes.items()}
    return Mail(limit, dialogue({k: v for k, v in cases.items() if v is not None}, tls=EHLO))


SOUND = {
    REACH: reached(),
    VERBS: verbs(),
    CLEAR: clear(),
    MAIL: mail(),
    general.BDAT: dialogue({"BDAT": "521 5.5.1 Error: command not implemented"}, tls=EHLO),
    general.GET: dialogue({"GET": "221 2.7.0 Error: I can break rules, too. Goodbye."}),
    general.EARLY: dialogue({"MAIL": "503 5.5.1 Error: send HELO/EHLO first", "HELO": f"250 {HOST}"}),
    verifier.OUTSIDER: dialogue({"relay": ("250 2.1.0 Ok", "554 5.7.1 <x@remote.test>: Relay access denied")}),
    verifier.OLD_TLS: "",
}
REFUSED = Ended(Failure.REFUSED, "connection refused")

# Requirement, what is broken, what the finding must quote.
BROKEN = [
    ("GEN-NET-01", {REACH: reached(REFUSED, connected=False, second=None)}, "refused"),
    ("GEN-BAN-01", {REACH: reached(SILENT, second=None)}, "no greeting: timed out"),
    ("GEN-BAN-01", {REACH: reached("220 localhost_ESMTP")}, "localhost_ESMTP"),
    ("GEN-BAN-01", {REACH: reached("220 mx ESMTP")}, "220 mx ESMTP"),
    ("GEN-BAN-01", {REACH: reached(f"554 {HOST} ESMTP")}, "554"),
    ("GEN-BAN-01", {REACH: reached(f"220-{HOST} ESMTP\n220-{HOST} ESMTP\n220 {HOST} ESMTP")}, " / "),
    ("GEN-BAN-01", {REACH: reached(more=b"250 unasked\r\n")}, "unasked"),
    ("GEN-BAN-01", {REACH: reached(second=SILENT)}, "second connection"),
    ("GEN-BAN-02", {REACH: reached(f"220 {HOST} ESMTP Postfix (Debian/GNU)")}, "'Postfix'"),
    ("GEN-BAN-02", {REACH: reached(f"220 {HOST} ESMTP 3.7.11")}, "'3.7'"),
    ("GEN-BAN-02", {VERBS: verbs(QUIT="221 2.0.0 Exim says bye")}, "QUIT says"),
    ("GEN-EHLO-01", {VERBS: verbs(EHLO.replace(HOST, "mx"))}, "inside TLS: 250 mx"),
    ("GEN-EHLO-01", {CLEAR: clear(EHLO_CLEAR.replace(HOST, "localhost"))}, "in clear: 250 localhost"),
    ("GEN-EHLO-01", {VERBS: Failed(Failure.CLOSED, "the server closed the connection")}, "no answer to EHLO"),
    *(("GEN-EHLO-02", {VERBS: verbs(EHLO.replace(word, "X"))}, f"{word} missing") for word in ("PIPELINING", "DSN")),
    ("GEN-EHLO-02", {VERBS: verbs(EHLO.replace("SMTPUTF8", "X"))}, "SMTPUTF8 missing"),
    *(
        ("GEN-EHLO-03", {VERBS: verbs(EHLO.replace("250-DSN", f"250-{word}\n250-DSN"))}, f"{word} inside TLS")
        for word in ("VRFY", "ETRN", "CHUNKING", "XCLIENT", "STARTTLS")
    ),
    ("GEN-EHLO-03", {CLEAR: clear(EHLO_CLEAR.replace("250-DSN", "250-ETRN\n250-DSN"))}, "ETRN in clear"),
    ("GEN-EHLO-04", {general.EARLY: dialogue({"HELO": "250 localhost"})}, "250 localhost"),
    ("GEN-EHLO-04", {general.EARLY: dialogue({"HELO": "504 5.5.2 no"})}, "504"),
    ("GEN-CMD-01", {VERBS: verbs(VRFY_someone="252 2.0.0 alice@example.test")}, "252"),
    ("GEN-CMD-01", {VERBS: verbs(VRFY_nobody="550 5.1.1 unknown")}, "550"),
    ("GEN-CMD-01", {VERBS: verbs(VRFY_nobody="502 5.1.1 no such user")}, "differ"),
    ("GEN-CMD-02", {VERBS: verbs(EXPN="250 2.0.0 alice")}, "250"),
    ("GEN-CMD-03", {VERBS: verbs(ETRN="459 <example.test>: service unavailable")}, "459"),
    ("GEN-CMD-03", {VERBS: verbs(ETRN="250 Queuing started")}, "250"),
    ("GEN-CMD-04", {VERBS: verbs(XCLIENT=f"220 {HOST} ESMTP")}, "220"),
    ("GEN-CMD-04", {VERBS: verbs(XFORWARD="250 2.0.0 Ok")}, "XFORWARD"),
    ("GEN-CMD-05", {general.GET: dialogue({"GET": UNKNOWN})}, "500"),
    ("GEN-CMD-05", {general.GET: dialogue({"GET": SILENT})}, "timed out"),
    ("GEN-CMD-06", {general.EARLY: dialogue({"MAIL": "250 2.1.0 Ok"})}, "250"),
    ("GEN-CMD-07", {VERBS: verbs(TURN="250 Ok")}, "TURN"),
    ("GEN-CMD-07", {VERBS: verbs(HELP="250 2.0.0 Ok")}, "HELP"),
    ("GEN-CMD-07", {VERBS: verbs(unknown_verb="250 Ok")}, "unknown verb"),
    ("GEN-CMD-08", {VERBS: verbs(NOOP="502 no")}, "NOOP"),
    ("GEN-CMD-08", {VERBS: verbs(RSET="530 5.7.0 Must issue a STARTTLS command first")}, "RSET"),
    ("GEN-CMD-08", {CLEAR: clear(QUIT="530 5.7.0 Must issue a STARTTLS command first")}, "QUIT"),
    ("GEN-CMD-09", {general.BDAT: dialogue({"BDAT": "250 2.0.0 Ok: 5 bytes"}, tls=EHLO)}, "250"),
    ("GEN-CMD-10", {MAIL: mail(REQUIRETLS="250 2.1.0 Ok")}, "REQUIRETLS"),
    ("GEN-CMD-10", {MAIL: mail(FOO__bar="250 2.1.0 Ok")}, "FOO=bar"),
    ("GEN-SIZE-01", {VERBS: verbs(EHLO.replace("SIZE 10485760", "X"))}, "no SIZE"),
    ("GEN-SIZE-01", {VERBS: verbs(EHLO.replace("SIZE 10485760", "SIZE"))}, "no limit"),
    ("GEN-SIZE-01", {VERBS: verbs(EHLO.replace("10485760", "0"))}, "SIZE 0"),
    ("GEN-SIZE-02", {MAIL: mail(SIZE="250 2.1.0 Ok")}, "250"),
    ("GEN-SIZE-02", {MAIL: mail(SIZE="452 4.3.1 Insufficient system storage")}, "452"),
    ("GEN-SIZE-03", {MAIL: mail(DATA=("250 Ok", "250 Ok", "354 go", "250 2.0.0 Ok: queued"))}, "queued"),
]
RECORDED = {"GEN-EHLO-05", "GEN-CMD-11", "VER-01", "VER-02", "VER-03", "VER-04", "VER-05", "VER-06"}
IDS = [row.id for row in (*general.REQUIREMENTS, *verifier.REQUIREMENTS)]


@pytest.mark.parametrize("identifier", IDS)
def test_passes_on_sound_observations(identifier):
    finding = judge(identifier, SOUND)
    assert finding.verdict in (Verdict.PASS, Verdict.INFO) and finding.found, finding
    if identifier not in RECORDED:
        assert finding.verdict is Verdict.PASS


@pytest.mark.parametrize(("identifier", "broken", "quoted"), BROKEN, ids=lambda value: str(value)[:40])
def test_fails_and_quotes_what_is_broken(identifier, broken, quoted):
    finding = judge(identifier, SOUND | broken)
    assert finding.verdict is Verdict.FAIL, finding.found
    assert quoted in finding.found


def test_every_requirement_has_a_failing_case():
    assert set(IDS) == {identifier for identifier, *_ in BROKEN} | RECORDED


def test_postscreen_may_greet_in_two_lines_on_a_relay_only():
    two = {REACH: reached(f"220-{HOST} ESMTP\n220 {HOST} ESMTP")}
    assert judge("GEN-BAN-01", SOUND | two).verdict is Verdict.PASS
    assert judge("GEN-BAN-01", SOUND | two, kind="submission").verdict is Verdict.FAIL


def test_the_addresses_and_codes_that_replies_must_have_are_no_versions():
    ehlo = EHLO.replace(f"250-{HOST}", f"250-{HOST} at your service, [203.0.113.9]")
    assert judge("GEN-BAN-02", SOUND | {VERBS: verbs(ehlo)}).verdict is Verdict.PASS


def test_reset_may_be_refused_in_clear_where_tls_is_demanded_first():
    refused = {CLEAR: clear(RSET="530 5.7.0 Must issue a STARTTLS command first")}
    assert judge("GEN-CMD-08", SOUND | refused, kind="submission").verdict is Verdict.PASS
    assert judge("GEN-CMD-08", SOUND | refused).verdict is Verdict.FAIL


def test_help_may_be_given():
    assert judge("GEN-CMD-07", SOUND | {VERBS: verbs(HELP="214 see the manual")}).verdict is Verdict.PASS


def test_mail_before_ehlo_may_be_answered_by_the_demand_for_tls():
    demanded = {general.EARLY: dialogue({"MAIL": "530 5.7.0 Must issue a STARTTLS command first"})}
    assert judge("GEN-CMD-06", SOUND | demanded, kind="submission").verdict is Verdict.PASS


@pytest.mark.parametrize("answer", ["221 2.7.0 Goodbye", CLOSED])
def test_closing_on_a_web_request_passes(answer):
    assert judge("GEN-CMD-05", SOUND | {general.GET: dialogue({"GET": answer})}).verdict is Verdict.PASS


@pytest.mark.parametrize("answer", ["502 5.5.1 no", "503 5.5.1 no", CLOSED])
def test_bdat_may_be_refused_or_closed_upon(answer):
    assert judge("GEN-CMD-09", SOUND | {general.BDAT: dialogue({"BDAT": answer}, tls=EHLO)}).verdict is Verdict.PASS


def test_a_limit_of_the_server_is_inconclusive():
    for limit in ("421 4.7.0 Error: too many errors", "450 4.7.1 Error: too much mail", "450 4.7.1 rate limit reached"):
        assert judge("GEN-CMD-03", SOUND | {VERBS: verbs(ETRN=limit)}).verdict is Verdict.INCONCLUSIVE


def test_a_temporary_refusal_is_no_pass():
    assert judge("GEN-CMD-02", SOUND | {VERBS: verbs(EXPN="450 4.7.1 try later")}).verdict is Verdict.FAIL


def test_a_lost_connection_is_inconclusive():
    assert judge("GEN-CMD-02", SOUND | {VERBS: verbs(EXPN=CLOSED)}).verdict is Verdict.INCONCLUSIVE


def test_delivery_reports_are_demanded_of_submission_and_recorded_on_a_relay():
    refused = {MAIL: mail(DSN=("555 5.5.4 Unsupported option: RET=HDRS",))}
    relay = judge("GEN-CMD-11", SOUND | refused)
    assert (relay.verdict, relay.severity) == (Verdict.INFO, Severity.INFO)
    assert judge("GEN-CMD-11", SOUND | refused, kind="submission").verdict is Verdict.FAIL
    assert judge("GEN-CMD-11", SOUND, kind="submission").verdict is Verdict.PASS


def test_size_differs_between_listeners():
    other = (("submission", {VERBS: verbs(EHLO.replace("10485760", "20971520"))}),)
    finding = judge("GEN-SIZE-01", SOUND, others=other)
    assert finding.verdict is Verdict.FAIL and "20971520" in finding.found and ADDRESS in finding.found


def test_without_a_limit_there_is_none_to_exceed():
    none = {MAIL: mail(None, SIZE=None, DATA=None)}
    assert judge("GEN-SIZE-02", SOUND | none).verdict is Verdict.NOT_RUN
    assert judge("GEN-SIZE-03", SOUND | none).verdict is Verdict.NOT_RUN
    assert judge("GEN-SIZE-03", SOUND | {MAIL: mail(10**9, DATA=None)}).verdict is Verdict.NOT_RUN


def test_a_recipient_refused_before_data_says_nothing_of_size():
    refused = {MAIL: mail(DATA=("250 2.1.0 Ok", "550 5.1.1 unknown"))}
    assert judge("GEN-SIZE-03", SOUND | refused).verdict is Verdict.INCONCLUSIVE


def test_no_banner_where_there_was_no_connection_is_not_judged_twice():
    dead = {REACH: reached(REFUSED, connected=False, second=None)}
    assert judge("GEN-BAN-01", SOUND | dead).verdict is Verdict.NOT_RUN


def test_a_server_without_starttls_is_named_by_what_it_says_in_clear():
    assert judge("GEN-EHLO-01", SOUND | {VERBS: Failed(Failure.TLS_FAILED, "STARTTLS answered 502")}).verdict is (
        Verdict.PASS
    )


def test_ehlo_that_cannot_be_seen_is_inconclusive():
    with pytest.raises(NotObserved):
        judge("GEN-EHLO-01", SOUND | {CLEAR: Failed(Failure.LIMITED, "greeted with 421")})


def test_a_trusted_source_address_is_never_a_pass():
    open_relay = {verifier.OUTSIDER: dialogue({"relay": ("250 2.1.0 Ok", "250 2.1.5 Ok")})}
    finding = judge("VER-01", SOUND | open_relay)
    assert finding.verdict is Verdict.INCONCLUSIVE and "mynetworks" in finding.found
    deferred = {verifier.OUTSIDER: dialogue({"relay": ("250 2.1.0 Ok", "450 4.1.8 Domain not found")})}
    assert judge("VER-01", SOUND | deferred).verdict is Verdict.INCONCLUSIVE


def test_old_tls_that_we_cannot_speak_makes_its_absence_unproven():
    finding = judge("VER-02", SOUND | {verifier.OLD_TLS: "our TLSv1 ClientHello was answered by alert"})
    assert finding.verdict is Verdict.INCONCLUSIVE and "TLSv1" in finding.found


def test_dead_silent_and_limiting_ports_are_recorded():
    assert "refused" in judge("VER-03", SOUND | {REACH: reached(REFUSED, connected=False)}).found
    assert judge("VER-06", SOUND | {REACH: reached(SILENT)}).verdict is Verdict.INFO
    assert "450" in judge("VER-04", SOUND | {VERBS: verbs(ETRN="450 4.7.1 later")}).found
    limited = dialogue({"ETRN": "421 4.7.0 too many errors"}, tls=EHLO)
    assert judge("VER-05", SOUND | {VERBS: limited}).verdict is Verdict.INFO
    again = dialogue(tls=EHLO)
    again = type(again)(again.greeting, None, again.ehlo_tls, (Told("x", told("x", "250 ok").steps, retried=True),))
    assert judge("VER-05", {VERBS: again}).found.startswith("1 of 1")
