#include "server/blob_store_flags.h"

#include <cstdlib>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/cluster/s3_credentials.h"
#include "server/jobs/local_blob_store.h"
#include "server/size_flag.h"

namespace ovpress {
namespace {

constexpr char kGroup[] = "Several servers";

absl::StatusOr<Blobs> OpenDirectory(const std::string& directory,
                                    const BlobsOptions& options) {
  Blobs blobs;
  RecoveryReport recovered;
  OVPRESS_ASSIGN_OR_RETURN(blobs.store,
                           OpenLocalBlobStore({.directory = directory,
                                               .limits = options.limits,
                                               .clock = options.clock,
                                               .observer = options.observer,
                                               .quotas = options.quotas},
                                              &recovered));
  blobs.description = absl::StrCat(
      directory, ": ", recovered.blobs, " blobs of ", recovered.blob_bytes,
      " bytes, ", recovered.uploads_resumable, " uploads to resume, ",
      recovered.orphans_removed, " leftovers removed, ",
      recovered.corrupt_blobs, " damaged blobs set aside");
  return blobs;
}

absl::StatusOr<Blobs> OpenS3(const BlobStoreFlags& flags,
                             const BlobsOptions& options) {
  Blobs blobs;
  PgPool* pool = options.pool;
  if (pool == nullptr) {
    const char* const address = std::getenv("OVPRESS_JOB_STORE");
    if (address == nullptr) {
      return absl::InvalidArgumentError(
          "--blob-store s3://... needs a PostgreSQL database, which knows "
          "which "
          "object holds which blob: OVPRESS_JOB_STORE=postgresql://...");
    }
    OVPRESS_ASSIGN_OR_RETURN(blobs.pool, PgPool::Create({.conninfo = address}));
    pool = blobs.pool.get();
    blobs.warning = absl::StrCat(
        "the queue is in SQLite, so this must be the only server on ",
        flags.blob_store,
        ": others know nothing of its jobs and may remove their models and "
        "results; for several servers give all of them --job-store "
        "postgresql://...");
  }
  OVPRESS_ASSIGN_OR_RETURN(S3Location location, ParseS3Url(flags.blob_store));
  if (!location.key.empty() && !absl::EndsWith(location.key, "/")) {
    location.key += "/";
  }
  S3ClientOptions client{.endpoint = flags.s3_endpoint,
                         .region = flags.s3_region,
                         .path_style = flags.s3_path_style,
                         .ca_file = flags.s3_ca_file};
  client.credentials =
      MakeCredentialsProvider({.sts_endpoint = flags.sts_endpoint,
                               .region = flags.s3_region,
                               .ca_file = flags.s3_ca_file});
  OVPRESS_ASSIGN_OR_RETURN(blobs.s3, S3Client::Create(std::move(client)));
  S3BlobStoreOptions store{.pool = pool,
                           .s3 = blobs.s3.get(),
                           .bucket = location.bucket,
                           .prefix = location.key,
                           .directory = flags.cache_dir.empty()
                                            ? options.data_dir + "/s3"
                                            : flags.cache_dir,
                           .cache_bytes = flags.cache_bytes,
                           .limits = options.limits,
                           .observer = options.observer,
                           .quotas = options.quotas};
  for (const std::string& text : flags.allow_address) {
    OVPRESS_ASSIGN_OR_RETURN(AllowedPrefix allowed, ParseAllowedPrefix(text));
    // A client that could write there could write over what others own.
    const std::string ours =
        absl::StrCat("s3://", location.bucket, "/", location.key);
    if (absl::StartsWith(ours, allowed.prefix) ||
        absl::StartsWith(allowed.prefix, ours)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--allow-address ", text, " overlaps --blob-store ",
                       ours, ": keep models elsewhere"));
    }
    store.allowed.push_back(std::move(allowed));
  }
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<S3BlobStore> shared,
                           S3BlobStore::Open(std::move(store)));
  blobs.shared = shared.get();
  blobs.store = std::move(shared);
  blobs.description = absl::StrCat(
      "s3://", location.bucket, "/", location.key, " at ",
      flags.s3_endpoint.empty() ? "AWS " + flags.s3_region : flags.s3_endpoint);
  return blobs;
}

}  // namespace

void BlobStoreFlags::Register(CLI::App* app) {
  app->add_option("--blob-store", blob_store,
                  "Where models and results are: a directory (default: store "
                  "in --data-dir), or s3://BUCKET/PREFIX for several servers, "
                  "with a PostgreSQL database in OVPRESS_JOB_STORE. "
                  "Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                  "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or "
                  "~/.aws/credentials")
      ->type_name("DIR|s3://BUCKET/PREFIX")
      ->group(kGroup);
  app->add_option("--s3-endpoint", s3_endpoint,
                  "The object store: http://HOST:PORT or https://HOST; "
                  "default: AWS")
      ->type_name("URL")
      ->group(kGroup);
  app->add_option("--s3-region", s3_region, "Its region, as signed")
      ->capture_default_str()
      ->group(kGroup);
  app->add_flag("--s3-path-style", s3_path_style,
                "URL/BUCKET/KEY instead of BUCKET.HOST/KEY: what most stores "
                "but AWS want")
      ->group(kGroup);
  app->add_option("--s3-ca-file", s3_ca_file,
                  "CA certificates of the object store and STS, in PEM")
      ->type_name("FILE")
      ->group(kGroup);
  app->add_option("--sts-endpoint", sts_endpoint,
                  "Where web identities are exchanged for keys; default: AWS")
      ->type_name("URL")
      ->group(kGroup);
  app->add_option("--cache-dir", cache_dir,
                  "Spool and read cache of --blob-store s3://; default: s3 in "
                  "--data-dir. May be lost at any time")
      ->type_name("DIR")
      ->group(kGroup);
  AddSizeFlag(app, "--cache-bytes", &cache_bytes, "Largest read cache")
      ->group(kGroup);
  app->add_option("--allow-address", allow_address,
                  "Objects below this prefix may be read and written for "
                  "clients that name them; IDENTITY=s3://... for one client "
                  "only. May be repeated; default: none")
      ->type_name("[IDENTITY=]s3://BUCKET/PREFIX")
      ->group(kGroup);
}

std::string Blobs::MetricsText() const {
  if (shared == nullptr) return "";
  const S3Stats s3_stats = s3->Stats();
  const BlockCacheStats cache = shared->CacheStats();
  std::string text;
  const auto head = [&text](absl::string_view name, absl::string_view type,
                            absl::string_view help) {
    absl::StrAppend(&text, "# HELP ", name, " ", help, "\n# TYPE ", name, " ",
                    type, "\n");
  };
  head("ovpress_s3_requests_total", "counter", "Requests sent, tries included");
  for (const auto& [method, count] :
       {std::pair<const char*, uint64_t>{"get", s3_stats.gets},
        {"put", s3_stats.puts},
        {"head", s3_stats.heads},
        {"list", s3_stats.lists},
        {"delete", s3_stats.deletes}}) {
    absl::StrAppend(&text, "ovpress_s3_requests_total{method=\"", method,
                    "\"} ", count, "\n");
  }
  const auto one = [&](absl::string_view name, absl::string_view type,
                       absl::string_view help, uint64_t value) {
    head(name, type, help);
    absl::StrAppend(&text, name, " ", value, "\n");
  };
  one("ovpress_s3_retries_total", "counter", "Of them, second and later tries",
      s3_stats.retries);
  one("ovpress_s3_failures_total", "counter", "Calls that failed after all",
      s3_stats.failures);
  one("ovpress_s3_sent_bytes_total", "counter", "Bytes of bodies sent",
      s3_stats.bytes_sent);
  one("ovpress_s3_received_bytes_total", "counter", "Bytes of bodies received",
      s3_stats.bytes_received);
  one("ovpress_s3_cache_bytes", "gauge", "Size of the read cache", cache.bytes);
  one("ovpress_s3_cache_hits_total", "counter", "Blocks read from the cache",
      cache.hits);
  one("ovpress_s3_cache_misses_total", "counter", "Blocks fetched",
      cache.misses);
  return text;
}

absl::StatusOr<Blobs> OpenBlobs(const BlobStoreFlags& flags,
                                const BlobsOptions& options) {
  if (absl::StrContains(flags.blob_store, "://")) return OpenS3(flags, options);
  if (!flags.allow_address.empty()) {
    return absl::InvalidArgumentError(
        "--allow-address needs --blob-store s3://...");
  }
  if (options.pool != nullptr) {
    return absl::InvalidArgumentError(
        "a queue in PostgreSQL needs --blob-store s3://...: other servers on "
        "it cannot read this server's directory; with one server only, use "
        "--job-store sqlite");
  }
  return OpenDirectory(
      flags.blob_store.empty() ? options.data_dir + "/store" : flags.blob_store,
      options);
}

}  // namespace ovpress
