# chatapp. What it needs and how to run it: docs/operate/recipes.md.
# Of August 2026, with Python 3.13.14. Dependabot proposes later ones.
FROM python:3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6

# The same commit makes the same image: libraries by their hashes, bytecode by that of its source, and
# this time for what has one. A release passes the time of its commit.
ARG SOURCE_DATE_EPOCH=1767225600

WORKDIR /app

# Wheels with the hashes of the lock: nothing is compiled, so no compiler is needed. Modes are stated,
# because those of a checkout depend on its umask, and the user below must be able to read.
COPY --chmod=644 .ci/requirements.lock .
RUN pip install --no-cache-dir --no-compile --only-binary :all: --require-hashes -r requirements.lock
RUN python -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/python3.13/site-packages

COPY --chmod=755 ratelimit_ext ratelimit_ext
COPY --chmod=755 chatapp chatapp
COPY --chmod=644 wsgi.py gunicorn.conf.py ./
RUN python -m compileall -q --invalidation-mode checked-hash .

# The numbers are for volumes and Kubernetes.
RUN groupadd --gid 10001 chatapp && useradd --uid 10001 --gid 10001 --no-create-home chatapp \
    && install --directory --mode 700 --owner chatapp --group chatapp instance
USER 10001:10001

# The embedded server, SQLite, and settlements that the storage could not take.
VOLUME /app/instance
# All addresses of the container. What is reachable from outside is decided where it is published.
ENV GUNICORN_HOST=0.0.0.0 PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
# The stop waits for calls: docker stop -t 640.
STOPSIGNAL SIGTERM
CMD ["gunicorn", "wsgi:app"]
